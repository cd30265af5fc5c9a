"""Rows of a training step: the photos that a row shows, and groups of equal rows that must stay whole."""

from collections.abc import Mapping, MutableSequence, Sequence
from typing import TYPE_CHECKING, Any

from lewis_core.errors import TrainingError

if TYPE_CHECKING:
    from torch import Tensor

Row = Mapping[str, Any]


def photos_of(row: Row) -> tuple[str, ...]:
    """References of the photos that a row's prompt shows, in order: ``photos``, or the one ``query``."""
    return tuple(row["photos"]) if row.get("photos") is not None else (row["query"],)


def check_groups(rows: Sequence[Row], size: int) -> None:
    """Check that this process got whole groups: completions of a prompt are compared with each other.

    Args:
        rows: The rows of a generation batch, one for each completion.
        size: Completions of a prompt.

    Raises:
        TrainingError: If a group is cut, e.g. by a data loader that deals rows out to processes one by one.
    """
    if len(rows) % size:
        raise TrainingError(
            f"this process got {len(rows)} completions to write, which is no multiple of num_generations = {size}: a "
            "group is split over processes. Leave accelerate's split_batches and dispatch_batches off"
        )
    for start in range(0, len(rows), size):
        if any(row != rows[start] for row in rows[start + 1 : start + size]):
            raise TrainingError(
                f"rows {start} to {start + size - 1} of this process belong to different prompts: a group of "
                f"{size} completions is split over processes. Leave accelerate's split_batches and dispatch_batches off"
            )


def level_groups(rewards: "Tensor", size: int) -> "Tensor":
    """Find the completions whose group has nothing to compare: all its rewards are equal.

    Args:
        rewards: Of each reward function, NaN where it is silent, shape ``(groups * size, functions)``.
        size: Completions of a prompt.

    Returns:
        For each completion, whether its group is level, shape ``(groups * size,)``.
    """
    grouped = rewards.nan_to_num(nan=float("-inf")).view(-1, size, rewards.shape[-1])
    level = (grouped == grouped[:, :1]).all(dim=1).all(dim=1)
    return level.repeat_interleave(size)


def clear_level_groups(
    output: dict[str, Any], rewards: "Tensor", size: int, first: int, logged: MutableSequence[float]
) -> float:
    """Take what rounding makes of equal rewards out of advantages.

    Advantages are differences to a group's mean. In float32 the mean of equal rewards is not quite their value, and
    the remainder, divided by a standard deviation near 0, becomes an advantage of 0.001 that points the same way for
    the whole group; Adam scales it up to a full update where no other group has a signal.

    Args:
        output: What the trainer learns from; its ``advantages``, of this process's completions, are changed.
        rewards: Of all processes' completions; see :func:`level_groups`.
        size: Completions of a prompt.
        first: Place of this process's first completion among all.
        logged: Advantages of all processes' completions, at its end; changed as well.

    Returns:
        Share of level groups, of all processes.
    """
    is_level = level_groups(rewards, size)
    own = is_level[first : first + len(output["advantages"])].to(output["advantages"].device)
    output["advantages"] = output["advantages"].masked_fill(own, 0.0)
    for place, one in enumerate(reversed(is_level.tolist()[-len(logged) :]), start=1):
        if one:
            logged[-place] = 0.0
    return is_level.float().mean().item()
