"""Parts of the report: charts, labels, facts."""

import re
from xml.etree import ElementTree

import pytest

from lewis_core.records import Catalog
from lewis_core.report import charts, curves, labels
from lewis_core.report.facts import duration, write_facts
from lewis_core.report.load import ReportData, Training
from lewis_core.report.samples import spread_evenly


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        pytest.param(0.0, 1.0, [0.0, 0.25, 0.5, 0.75, 1.0], id="unit"),
        pytest.param(0.13, 0.93, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0], id="inside"),
        pytest.param(-3.0, 42.0, [-20.0, 0.0, 20.0, 40.0, 60.0], id="negative"),
        pytest.param(5.0, 5.0, [4.5, 4.75, 5.0, 5.25, 5.5], id="constant"),
    ],
)
def test_ticks_are_round_and_cover(low: float, high: float, expected: list[float]) -> None:
    assert charts.nice_ticks(low, high) == expected


def test_smooth_keeps_constants_and_lowers_peaks() -> None:
    assert charts.smooth([2.0] * 5, 1.0) == pytest.approx([2.0] * 5)
    # Weights 1 and 2 exp(-1/2) + 2 exp(-2): 1 / (1 + 1.2131 + 0.2707) = 0.4026 of the peak stays.
    assert charts.smooth([0.0, 0, 1, 0, 0], 1.0)[2] == pytest.approx(0.4026, abs=1e-4)


def points_of(chart: str) -> tuple[list[str], list[str]]:
    """Places of a chart's dots, and of the corners of its line."""
    dots = [f"{x},{y}" for x, y in re.findall(r'<circle cx="(\S+)" cy="(\S+)"', chart)]
    return dots, re.findall(r'<polyline points="([^"]*)"', chart)[0].split()


def test_a_line_through_few_points_meets_them() -> None:
    for count, is_met in ((4, True), (30, False)):
        places = [float(place) for place in range(count)]
        series = charts.Series("held-out", "k0", places, [(-1.0) ** place for place in range(count)])
        dots, corners = points_of(charts.line_chart("title", [series], "update", "share"))
        assert len(dots) == count
        assert (dots == corners) is is_met


def test_lines_are_called_what_they_show() -> None:
    rows = tuple({"step": step, "held_out/accuracy": 0.5, "held_out/listener_accuracy": 0.7} for step in (1, 2))
    curve = curves.draw_curves(Training(metrics=rows, completions=(), summary={}, settings={}))[0]
    assert [curve.title, *re.findall(r'class="label[^>]*>([^<]*)<', curve.chart)] == [
        "Held-out listener",
        "training’s",
        "held-out",
    ]


def test_labels_are_moved_apart_inside_the_chart() -> None:
    assert charts.spread([10, 12, 50], 14, 0, 100) == [10, 24, 50]
    assert charts.spread([95, 99], 14, 0, 100) == [86, 100]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        pytest.param("accuracy", 0.814, "81 %", id="percent"),
        pytest.param("state_rate", 0.002, "0.2 %", id="tiny-is-not-zero"),
        pytest.param("accuracy", 0.998, "99.8 %", id="nearly-all-is-not-all"),
        pytest.param("f1", 0.914, "0.91", id="fraction"),
        pytest.param("words_mean", 12.34, "12.3", id="number"),
        pytest.param("accuracy", None, "–", id="unmeasured"),
    ],
)
def test_values_are_written_in_their_unit(name: str, value: float | None, expected: str) -> None:
    assert labels.format_value(name, value).replace(labels.NO_BREAK, " ") == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(0.0004, "p < 0.001", id="tiny"),
        pytest.param(0.0044, "p = 0.004", id="small"),
        pytest.param(0.04, "p = 0.04", id="large"),
    ],
)
def test_p_values_never_read_as_zero(value: float, expected: str) -> None:
    assert labels.format_p(value).replace(labels.NO_BREAK, " ") == expected


def test_differences_carry_their_sign() -> None:
    assert labels.format_difference("accuracy", -0.131) == "−13"
    assert labels.format_difference("accuracy", 0.001) == "0"
    assert labels.format_difference_interval("f1", -0.02, 0.31) == "−0.02 to +0.31"


def test_unknown_metrics_are_spelled_out() -> None:
    assert labels.metric_name("recognition", "f1_hard") == "F1 hard"
    assert labels.metric_name("identification", "recall_at_k") == "recall@k"


def test_durations_are_written_for_people() -> None:
    assert [duration(seconds) for seconds in (47.6, 291.4, 7500)] == ["48 s", "4 min 51 s", "2 h 5 min"]


def test_long_digests_are_cut_in_facts() -> None:
    data = ReportData(Catalog(concepts=()), (), (), (), (), facts={"speaker": {"path": "a/b", "digest": "ab" * 32}})
    group = next(group for group in write_facts(data) if group.title == "Speaker")
    assert group.rows == (("model", "a/b"), ("digest", "ab" * 6))


def test_evenly_spread_items_hold_both_ends() -> None:
    assert spread_evenly([1, 2, 3, 4, 5, 6, 7], 3) == [1, 4, 7]
    assert spread_evenly([1, 2], 5) == [1, 2]


def test_line_chart_leaves_out_nothing_and_escapes() -> None:
    series = charts.Series("<listener>", "k0", [1, 2, 3], [0.1, 0.2, 0.3])
    other = charts.Series("format", "k1", [1, 2, 3], [1, 1, 1])
    chart = charts.line_chart("Reward", [series, other], "update", "per completion", cover=(0.0, 1.0))
    assert chart.count("<circle") == 6
    assert "&lt;listener&gt;" in chart
    assert "<listener>" not in chart
    ElementTree.fromstring(charts.standalone(chart, "A & B").split("\n", 1)[1])


@pytest.mark.parametrize(
    ("probability", "written"),
    [(0.0, "0"), (0.00004, "<.01"), (0.0002, "0.02"), (0.004, "0.4"), (0.0099, "1"), (0.56, "56"), (0.996, "99.6"),
     (0.9999, "100"), (1.0, "100")],
)  # fmt: skip
def test_probabilities_beside_bars_do_not_all_read_0_or_100(probability: float, written: str) -> None:
    assert labels.beside_bar(probability) == written
