"""Training curves: which logged quantities are drawn, and how they are named."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from lewis_core.records import JsonObject
from lewis_core.report.charts import Series, line_chart
from lewis_core.report.load import Training

STEP = "step"
X_LABEL = "optimiser update"


@dataclass(frozen=True)
class Panel:
    """One chart: all logged quantities whose names match, over updates."""

    title: str
    unit: str
    caption: str
    pattern: re.Pattern[str]
    """Its first group, if any, names the line."""
    cover: tuple[float, ...] = ()
    """Values that the axis must include."""
    names: Mapping[str, str] = field(default_factory=dict)
    """What lines are called beside their logged names."""


PANELS = (
    Panel("Reward", "mean per completion", "weighted sum of all parts",
          re.compile(r"reward")),
    Panel("Parts of the reward", "mean per completion", "each part before its weight",
          re.compile(r"rewards?/(.+?)(?:_reward)?(?:/mean)?")),
    Panel("Listener accuracy", "share of completions", "how often the listener ranks the target first",
          re.compile(r"(?:listener[/_])?(?:game[/_])?accuracy"), (0.0, 1.0)),
    Panel("Held-out listener", "share of completions", "both listeners on the same texts; a gap is a private code",
          re.compile(r"held_out/((?:listener_)?accuracy)"), (0.0, 1.0),
          {"accuracy": "held-out", "listener_accuracy": "training’s"}),
    Panel("Distance from the base", "nats per token", "KL divergence from the untrained speaker",
          re.compile(r"(?:train/)?kl(?:/mean)?"), (0.0,)),
    Panel("Length", "tokens", "mean length of a completion",
          re.compile(r"completions?/mean_length|completion_length")),
    Panel("Entropy", "nats per token", "how undecided the speaker is about the next word",
          re.compile(r"entropy")),
)  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """A finished panel and the numbers it begins and ends with."""

    title: str
    unit: str
    caption: str
    slug: str
    chart: Markup


def draw_curves(training: Training) -> tuple[Curve, ...]:
    """Draw every panel that training logged something for."""
    curves = []
    for panel in PANELS:
        series = _collect(training.metrics, panel)
        if not series:
            continue
        reference = _chance(training) if panel.title == "Listener accuracy" else None
        chart = line_chart(panel.title, series, X_LABEL, panel.unit, reference, panel.cover)
        slug = panel.title.lower().replace(" ", "-")
        curves.append(Curve(panel.title, panel.unit, panel.caption, slug, chart))
    return tuple(curves)


def draw_shared_curves(trainings: Sequence[tuple[str, str, Training]]) -> tuple[Curve, ...]:
    """Draw several trainings into the same panels, those quantities that are one line in each.

    Args:
        trainings: Speaker's name, CSS class and training.
    """
    curves = []
    for panel in PANELS:
        if panel.pattern.groups:
            continue
        series = [
            Series(name, style, line.xs, line.ys)
            for name, style, training in trainings
            for line in _collect(training.metrics, panel)
        ]
        if not series:
            continue
        chances = {_chance(training) for _, _, training in trainings}
        reference = next(iter(chances)) if panel.title == "Listener accuracy" and len(chances) == 1 else None
        chart = line_chart(panel.title, series, X_LABEL, panel.unit, reference, panel.cover)
        curves.append(Curve(panel.title, panel.unit, panel.caption, panel.title.lower().replace(" ", "-"), chart))
    return tuple(curves)


def _collect(rows: Iterable[JsonObject], panel: Panel) -> list[Series]:
    """Gather a panel's lines from rows of ``{"step": …, name: value, …}``."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        step = row.get(STEP)
        for name, value in row.items():
            if isinstance(step, int | float) and _is_number(value) and (match := panel.pattern.fullmatch(name)):
                label = match.group(1) if match.re.groups else panel.title
                points.setdefault(label, []).append((float(step), float(value)))
    ordered = {label: sorted(dict(pairs).items()) for label, pairs in sorted(points.items())}
    return [
        Series(
            panel.names.get(label, label.replace("_", " ")), f"k{index}", [x for x, _ in pairs], [y for _, y in pairs]
        )
        for index, (label, pairs) in enumerate(ordered.items())
    ]


def _chance(training: Training) -> tuple[str, float] | None:
    candidates = training.summary.get("num_candidates")
    return ("chance", 1 / candidates) if isinstance(candidates, int) and candidates > 1 else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
