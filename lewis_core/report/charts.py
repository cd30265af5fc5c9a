"""Charts as inline SVG, drawn here so that they are small, sharp, themed by the page and equal on every machine.

Colours come from CSS classes (``chart.css``): ``s0`` is the baseline speaker, ``s1`` the main one, and so on;
``k0`` … are parts of one quantity. A chart written to a file of its own carries that style sheet.
"""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

STYLE = Path(__file__).with_name("chart.css")
WIDTH, HEIGHT = 360, 236
LEFT, TOP, BOTTOM = 44, 28, 36
LABEL_ROOM, PLAIN_ROOM = 92, 16
LABEL_GAP = 14.0
PLOT_WIDTH = 330
NUM_COLOURS = 8
QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)
VIEW_BOX = re.compile(r'viewBox="0 0 (\S+) (\S+)"')
SMOOTHING = 20
FEW = 10
"""From so many points on a line is smoothed; through fewer it goes straight, as a mean would hide where it begins."""
"""A line is smoothed with a kernel as wide as its length divided by this."""


@dataclass(frozen=True)
class Series:
    """One line: its name, CSS class and points; values may have gaps where nothing was measured."""

    name: str
    style: str
    xs: Sequence[float]
    ys: Sequence[float]


@dataclass(frozen=True)
class Estimate:
    """One dot with its interval, all in axis units."""

    style: str
    value: float | None
    low: float | None = None
    high: float | None = None
    title: str = ""


@dataclass(frozen=True)
class Axis:
    """A linear map from values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Pixel of a value, rounded so that equal inputs give equal bytes."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)


def nice_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Choose round tick values that cover ``[low, high]``: steps of 1, 2, 2.5 or 5 times a power of ten.

    Args:
        low: Smallest value shown.
        high: Largest value shown; equal values are spread by one.
        about: Wanted number of steps.

    Returns:
        Ascending ticks; the first is at most ``low``, the last at least ``high``.
    """
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def smooth(ys: Sequence[float], bandwidth: float) -> list[float]:
    """Average each value with its neighbours, by a Gaussian kernel over positions.

    Args:
        ys: Values, one a step.
        bandwidth: Standard deviation of the kernel, in positions.

    Returns:
        As many values; at the ends the kernel is cut off and its weights rescaled.
    """
    reach = math.ceil(3 * bandwidth)
    smoothed = []
    for centre in range(len(ys)):
        near = range(max(0, centre - reach), min(len(ys), centre + reach + 1))
        weights = [math.exp(-0.5 * ((index - centre) / bandwidth) ** 2) for index in near]
        smoothed.append(sum(w * ys[index] for w, index in zip(weights, near, strict=True)) / sum(weights))
    return smoothed


def line_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    reference: tuple[str, float] | None = None,
    cover: Sequence[float] = (),
) -> Markup:
    """Draw points and a smooth line of each series over a common axis.

    Args:
        title: Read by screen readers.
        series: Lines; with more than one, each is named at its right end.
        x_label: Quantity and unit of the horizontal axis.
        y_label: Quantity and unit of the vertical axis.
        reference: A named horizontal line, e.g. ``("chance", 1 / 3)``.
        cover: Values that the vertical axis must include.
    """
    drawn = [item for item in series if item.xs]
    values = [y for item in drawn for y in item.ys] + ([reference[1]] if reference else []) + list(cover)
    ticks = nice_ticks(min(values), max(values))
    places = [x for item in drawn for x in item.xs]
    room = LABEL_ROOM if len(drawn) > 1 else PLAIN_ROOM
    y = Axis(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)
    x = Axis(min(places), max(*places, min(places) + 1), LEFT, WIDTH - room)
    body = [y_grid(ticks, y, WIDTH - room), x_axis(x, x_label), y_name(y_label)]
    if reference:
        body.append(_reference(*reference, x, y))
    body += [_series(item, x, y) for item in drawn]
    if len(drawn) > 1:
        body.append(_end_labels(drawn, y, WIDTH - room + 7))
    return svg(f"{title}: {y_label} over {x_label}", WIDTH, HEIGHT, body)


def interval_chart(
    title: str, estimates: Sequence[Estimate], reference: float | None = None, width: int = PLOT_WIDTH
) -> Markup:
    """Draw one row of a forest plot on an axis from 0 to 1: a dot and an interval for each speaker.

    Args:
        title: Read by screen readers.
        estimates: From the top down.
        reference: Chance level, drawn as a short dashed line.
        width: In pixels.
    """
    height = 12 * len(estimates) + 14
    x = Axis(0, 1, 6, width - 6)
    body = [vertical("grid", x(tick), 0, height) for tick in QUARTERS]
    if reference is not None:
        body.append(vertical("chance", x(reference), 0, height))
    body += [_estimate(item, x, 13 + 12 * row) for row, item in enumerate(estimates)]
    return svg(title, width, height, body)


def interval_axis(width: int = PLOT_WIDTH) -> Markup:
    """Draw the axis that belongs above a column of :func:`interval_chart`."""
    x = Axis(0, 1, 6, width - 6)
    anchors = {0.0: "start", 1.0: "end"}
    labels = [
        Markup('<text class="tick" x="{}" y="11" text-anchor="{}">{:.0f}{}</text>').format(
            x(tick) + {0.0: -6, 1.0: 6}.get(tick, 0), anchors.get(tick, "middle"), 100 * tick, "%" if tick == 1 else ""
        )
        for tick in QUARTERS
    ]
    return svg("axis from 0 to 100 percent", width, 14, labels)


def forest_chart(title: str, rows: Sequence[tuple[str, Sequence[Estimate], float | None]]) -> Markup:
    """Draw a whole forest plot, for a file of its own: a label and its estimates in each row, speakers named below.

    Args:
        title: Read by screen readers.
        rows: Label, estimates from the top down, and chance level if there is one.
    """
    x = Axis(0, 1, 300, 660)
    body, top = [], 30
    for label, estimates, reference in rows:
        height = 12 * len(estimates) + 16
        if reference is not None:
            body.append(vertical("chance", x(reference), top + 3, top + height - 3))
        body.append(label_text(286, top + height / 2 + 4, label, "end"))
        body += [_estimate(item, x, top + 14 + 12 * row) for row, item in enumerate(estimates)]
        top += height
    tick_text = Markup('<text class="tick" x="{}" y="16" text-anchor="middle">{:.0f} %</text>')
    grid = [vertical("grid", x(tick), 24, top) for tick in QUARTERS]
    names = dict.fromkeys((item.style, item.title) for _, estimates, _ in rows for item in estimates)
    named = legend([*names], x.start, top + 22)
    body = [*grid, *body, *(tick_text.format(x(tick), 100 * tick) for tick in QUARTERS), *named]
    return svg(title, 690, top + 34, body)


def change_chart(title: str, before: float | None, after: float, after_style: str, width: int = 200) -> Markup:
    """Draw a change on an axis from 0 to 1: a hollow dot before, a line, a full dot after."""
    x = Axis(0, 1, 6, width - 6)
    body = [Markup('<line class="rail" x1="{}" x2="{}" y1="9" y2="9"/>').format(x(0), x(1))]
    if before is not None:
        body.append(
            Markup('<line class="change {}" x1="{}" x2="{}" y1="9" y2="9"/>').format(after_style, x(before), x(after))
        )
        body.append(Markup('<circle class="dot s0" cx="{}" cy="9" r="4.5"/>').format(x(before)))
    body.append(Markup('<circle class="dot {}" cx="{}" cy="9" r="5.5"/>').format(after_style, x(after)))
    return svg(title, width, 18, body)


def standalone(chart: Markup, title: str) -> str:
    """Make an SVG file out of an inline chart: its own style sheet, background, margin and title."""
    style = STYLE.read_text(encoding="utf-8")
    found = VIEW_BOX.search(chart)
    width, height = (float(size) for size in found.groups()) if found else (WIDTH, HEIGHT)
    size = f'viewBox="-14 -40 {width + 28:g} {height + 54:g}" width="{width + 28:g}" height="{height + 54:g}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" {size}>'
    name = Markup('<text class="title" x="0" y="-16">{}</text>').format(title)
    background = f'<rect x="-14" y="-40" width="{width + 28:g}" height="{height + 54:g}" fill="#fff"/>'
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{head}<style>{style}</style>{background}{name}{chart}</svg>\n'


def speaker_style(slot: int) -> str:
    """CSS class of a speaker's colour."""
    return f"s{slot % NUM_COLOURS}"


def vertical(style: str, x: float, top: float, bottom: float) -> Markup:
    """Draw a vertical line."""
    return Markup('<line class="{0}" x1="{1}" x2="{1}" y1="{2}" y2="{3}"/>').format(style, x, top, bottom)


def label_text(x: float, y: float, text: str, anchor: str = "start") -> Markup:
    """Write a word beside a line, a row or a dot."""
    return Markup('<text class="label" x="{}" y="{}" text-anchor="{}">{}</text>').format(x, y, anchor, text)


def legend(names: Sequence[tuple[str, str]], left: float, y: float) -> list[Markup]:
    """Name the speakers in one line: a dot in its colour, and the name."""
    marks = []
    for style, name in names:
        dot = Markup('<g class="{}"><circle class="dot" cx="{}" cy="{}" r="4"/></g>')
        marks += [dot.format(style, left + 4, y - 4), label_text(left + 13, y, name)]
        left += 30 + 6.5 * len(name)
    return marks


def svg(title: str, width: float, height: float, body: Sequence[Markup]) -> Markup:
    """Put drawn parts into a picture with a title for screen readers."""
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {} {}" width="{}" height="{}" role="img" '
        'aria-label="{}">{}</svg>'
    ).format(width, height, width, height, title, Markup("").join(body))


def _tick_text(value: float, ticks: Sequence[float]) -> str:
    step = min((b - a for a, b in itertools.pairwise(ticks)), default=1.0)
    digits = next((digits for digits in range(7) if abs(round(step, digits) - step) < 1e-9), 7)
    return f"{value:,.{digits}f}".replace("-", "−")


def y_grid(ticks: Sequence[float], y: Axis, right: float) -> Markup:
    """Draw horizontal grid lines with their values."""
    line = Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>')
    text = Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>')
    lines = [line.format(LEFT, right, y(tick), y(tick)) for tick in ticks]
    texts = [text.format(LEFT - 8, y(tick) + 3.5, _tick_text(tick, ticks)) for tick in ticks]
    return Markup("").join(lines + texts)


def x_axis(x: Axis, label: str) -> Markup:
    """Write the values below a chart, and what they are."""
    ticks = [tick for tick in nice_ticks(x.low, x.high) if x.low <= tick <= x.high]
    text = Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>')
    marks = [text.format(x(tick), HEIGHT - BOTTOM + 16, _tick_text(tick, ticks)) for tick in ticks]
    name = Markup('<text class="axis" x="{}" y="{}" text-anchor="end">{}</text>').format(x.end, HEIGHT - 5, label)
    return Markup("").join([*marks, name])


def y_name(label: str) -> Markup:
    """Write what the vertical axis shows."""
    return Markup('<text class="axis" x="0" y="10">{}</text>').format(label)


def _reference(name: str, value: float, x: Axis, y: Axis) -> Markup:
    return Markup(
        '<line class="chance" x1="{}" x2="{}" y1="{}" y2="{}"/>'
        '<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>'
    ).format(x.start, x.end, y(value), y(value), x.end, y(value) + 13, name)


def _smooth_line(item: Series) -> Sequence[float]:
    """Values of a series' line: their running mean, or the values themselves where they are few."""
    return item.ys if len(item.ys) < FEW else smooth(item.ys, max(1.0, len(item.ys) / SMOOTHING))


def _series(item: Series, x: Axis, y: Axis) -> Markup:
    raw = Markup("").join(
        Markup('<circle cx="{}" cy="{}" r="1.6"/>').format(x(place), y(value))
        for place, value in zip(item.xs, item.ys, strict=True)
    )
    path = " ".join(f"{x(place)},{y(value)}" for place, value in zip(item.xs, _smooth_line(item), strict=True))
    return Markup('<g class="series {}"><title>{}</title><g class="raw">{}</g><polyline points="{}"/></g>').format(
        item.style, item.name, raw, path
    )


def _end_labels(series: Sequence[Series], y: Axis, left: float) -> Markup:
    """Name each line at its end, moved apart where ends are close."""
    ends = sorted(((y(_smooth_line(item)[-1]), item) for item in series), key=lambda end: (end[0], end[1].name))
    places = spread([end for end, _ in ends], LABEL_GAP, TOP, HEIGHT - BOTTOM)
    text = Markup('<text class="label {}" x="{}" y="{}">{}</text>')
    return Markup("").join(
        text.format(item.style, left, round(place + 4, 1), item.name)
        for place, (_, item) in zip(places, ends, strict=True)
    )


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move ascending positions apart to at least ``gap``, inside ``[low, high]`` while there is room."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else max(place, low))
    limit = high
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - gap
    return moved


def _estimate(item: Estimate, x: Axis, middle: float) -> Markup:
    if item.value is None:
        return Markup("")
    parts = [Markup("<title>{}</title>").format(item.title)] if item.title else []
    if item.low is not None and item.high is not None:
        low, high = max(0.0, item.low), min(1.0, item.high)
        parts.append(
            Markup('<line class="whisker" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(x(low), x(high), middle, middle)
        )
    parts.append(Markup('<circle class="dot" cx="{}" cy="{}" r="4"/>').format(x(item.value), middle))
    return Markup('<g class="estimate {}">{}</g>').format(item.style, Markup("").join(parts))
