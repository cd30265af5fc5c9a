"""What the speaker wrote while it was trained: a few sampled completions, early to late."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from lewis_core.descriptions.parse import parse_or_none
from lewis_core.records import JsonObject
from lewis_core.report.gallery import highlight
from lewis_core.report.load import Training

LISTENER_REWARD = "listener"


@dataclass(frozen=True)
class Sample:
    """One completion of one update."""

    step: int
    text: Markup
    is_readable: bool
    reward: str
    """The listener's part, as logged; empty when there is none."""


def pick_samples(training: Training, num_samples: int = 5) -> tuple[Sample, ...]:
    """Take the first logged completion of a few updates, evenly spread from the first to the last.

    Args:
        training: Its ``completions`` are rows with ``step`` and ``completion``.
        num_samples: How many, at most.
    """
    first_by_step: dict[int, JsonObject] = {}
    for row in training.completions:
        if isinstance(row.get("step"), int) and isinstance(row.get("completion"), str):
            first_by_step.setdefault(row["step"], row)
    steps = spread_evenly(sorted(first_by_step), num_samples)
    return tuple(_sample(step, first_by_step[step]) for step in steps)


def spread_evenly(items: Sequence[int], count: int) -> list[int]:
    """Choose ``count`` items, evenly spaced, the first and the last among them."""
    if len(items) <= count or count < 2:
        return list(items[:count]) if count < 2 else list(items)
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]


def _sample(step: int, row: JsonObject) -> Sample:
    description = parse_or_none(row["completion"])
    reward = row.get(LISTENER_REWARD)
    return Sample(
        step=step,
        text=highlight(description.text if description else row["completion"]),
        is_readable=description is not None,
        reward=f"{reward:.2f}" if isinstance(reward, int | float) else "",
    )
