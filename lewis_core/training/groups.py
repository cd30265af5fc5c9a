"""Rows of a training step: the photos that a row shows, and groups of equal rows that must stay whole."""

from collections.abc import Mapping, Sequence
from typing import Any

from lewis_core.errors import TrainingError

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


def content_parts(content: str | Sequence[Row]) -> list[dict[str, Any]]:
    """A message's content as parts, without the empty fields that a table of parts has."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [{name: value for name, value in part.items() if value is not None} for part in content]
