"""A chart of a few dots a line: shares over a quantity, dot sizes by weight."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from lewis_core.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    PLAIN_ROOM,
    QUARTERS,
    TOP,
    WIDTH,
    Axis,
    legend,
    nice_ticks,
    svg,
    x_axis,
    y_grid,
    y_name,
)

LEGEND_HEIGHT = 26
SMALLEST, LARGEST = 2.5, 7.0
"""Radius of a dot of no weight, and of one that holds everything."""


@dataclass(frozen=True)
class Dots:
    """One line of dots: its name, CSS class, points, and the weight of each, summing to 1."""

    name: str
    style: str
    xs: Sequence[float]
    ys: Sequence[float]
    weights: Sequence[float]


def dot_chart(title: str, series: Sequence[Dots], x_label: str, y_label: str, diagonal: bool = False) -> Markup:
    """Draw dots joined by lines; the vertical axis goes from 0 to 1.

    Args:
        title: Read by screen readers.
        series: Lines, named in a legend below.
        x_label: Quantity and unit of the horizontal axis.
        y_label: Quantity of the vertical axis.
        diagonal: Whether the horizontal axis goes from 0 to 1 as well, with the line of equality.
    """
    places = [x for item in series for x in item.xs]
    ticks = list(QUARTERS) if diagonal else nice_ticks(min(places), max(places))
    x, y = Axis(ticks[0], ticks[-1], LEFT, WIDTH - PLAIN_ROOM), Axis(0, 1, HEIGHT - BOTTOM, TOP)
    body = [y_grid(list(QUARTERS), y, WIDTH - PLAIN_ROOM), x_axis(x, x_label), y_name(y_label)]
    if diagonal:
        line = Markup('<line class="chance" x1="{}" x2="{}" y1="{}" y2="{}"/>')
        body.append(line.format(x(0), x(1), y(0), y(1)))
    body += [_line(item, x, y) for item in series]
    body += legend([(item.style, item.name) for item in series], LEFT, HEIGHT + LEGEND_HEIGHT - 8)
    return svg(f"{title}: {y_label} over {x_label}", WIDTH, HEIGHT + LEGEND_HEIGHT, body)


def _line(item: Dots, x: Axis, y: Axis) -> Markup:
    path = " ".join(f"{x(place)},{y(value)}" for place, value in zip(item.xs, item.ys, strict=True))
    dots = Markup("").join(
        Markup('<circle class="dot" cx="{}" cy="{}" r="{}"><title>{}</title></circle>').format(
            x(place),
            y(value),
            round(SMALLEST + (LARGEST - SMALLEST) * weight**0.5, 1),
            f"{item.name}: {value:.2f} at {place:.3g}",
        )
        for place, value, weight in zip(item.xs, item.ys, item.weights, strict=True)
    )
    return Markup('<g class="series {}"><polyline class="thin" points="{}"/>{}</g>').format(item.style, path, dots)
