"""The figures behind the averages, counted by hand."""

import re
from collections.abc import Sequence

import pytest

from lewis_core.evaluation.records import EvaluationName, EvaluationResult, Metric, Prediction
from lewis_core.records import Database
from lewis_core.report import figures
from lewis_core.report.figures import by_category, calibration, confusions, count_yes_no
from lewis_core.report.labels import format_spread
from lewis_core.report.load import Evaluation, ReportData, Speaker
from lewis_core.report.points import Dots
from lewis_core.testing import make_catalog, make_database

CATALOG = make_catalog({"mug": 2, "bag": 2})
IDS = [concept.id for concept in CATALOG.concepts]  # two bags, two mugs


def report(
    evaluation: EvaluationName, by_speaker: dict[str, Sequence[Prediction]], ece: float | None = None
) -> ReportData:
    metrics = (Metric(name="ece", value=ece, n=1),) if ece is not None else ()
    words = {name: {c: "one " * (number + 1) for number, c in enumerate(IDS)} for name in by_speaker}
    databases: dict[str, Database] = {name: make_database(CATALOG, {**words[name]}, name) for name in by_speaker}
    return ReportData(
        catalog=CATALOG,
        quarantine=(),
        speakers=tuple(
            Speaker(name, slot, {entry.concept: entry for entry in databases[name].entries})
            for slot, name in enumerate(by_speaker)
        ),
        evaluations=tuple(
            Evaluation(
                EvaluationResult(evaluation=evaluation, speaker=name, answering="listener", metrics=metrics),
                tuple(items),
            )
            for name, items in by_speaker.items()
        ),
        comparisons=(),
    )


def pair(number: int, expected: int, answered: int | None, yes: float = 0.5, **more: object) -> Prediction:
    fields = {
        "item": f"{number}|{expected}|{answered}", "concept": IDS[number % 4], "category": "k",
        "options": ("yes", "no"), "expected": expected, "answered": answered, "probabilities": (yes, 1 - yes),
        "tags": {"mode": "description"}, **more,
    }  # fmt: skip
    return Prediction.model_validate(fields)


def test_yes_and_no_are_counted_with_what_is_neither() -> None:
    items = [pair(n, 0, 0) for n in range(3)] + [pair(n, 0, 1) for n in range(2)] + [pair(0, 1, 0), pair(1, 1, None)]
    items += [pair(2, 1, 1), pair(3, 0, None, error="no description: x")]
    items.append(pair(0, 0, 0, tags={"mode": "no_image"}))  # a control arm is not counted
    [found] = count_yes_no(report("recognition", {"base": items}))
    assert (found.hits, found.misses, found.false_alarms, found.rejections) == (3, 2, 1, 1)
    assert (found.invalid, found.failed) == (1, 1)


def test_the_calibration_plot_has_a_dot_for_each_full_bin(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Dots] = []
    monkeypatch.setattr(figures, "dot_chart", lambda title, series, *names, **options: drawn.extend(series) or "")
    # ten answers of .92 of which 4 are positives, five of .24 of which 1 is, three of .5: too few for a dot
    items = [pair(n, 0 if n < 4 else 1, 0, 0.92) for n in range(10)]
    items += [pair(n, 0 if n < 1 else 1, 1, 0.24) for n in range(5)] + [pair(n, 0, 0, 0.5) for n in range(3)]
    figure = calibration(report("recognition", {"base": items}, ece=0.125))
    assert figure is not None and "base 0.12" in figure.caption
    [line] = drawn
    assert line.xs == pytest.approx([0.24, 0.92])
    assert line.ys == pytest.approx([0.2, 0.4])
    assert line.weights == pytest.approx([5 / 18, 10 / 18])
    assert calibration(report("recognition", {"base": items[:3]})) is None


def ranked(truth: int, answered: int | None, number: int = 0) -> Prediction:
    return Prediction(
        item=f"ranking:{truth}:{number}", concept=IDS[truth], category=IDS[truth].partition("/")[0], options=tuple(IDS),
        expected=truth, answered=answered, tags={"mode": "ranking"},
    )  # fmt: skip


def test_what_is_taken_for_what() -> None:
    items = [ranked(0, 0), ranked(0, 1, 1), ranked(1, 1), ranked(2, 3), ranked(2, 0, 1), ranked(3, None)]
    [found] = confusions(report("identification", {"base": items}))
    bags, mugs = found.figures
    assert (bags.title, bags.caption) == ("cat-bag", "2 of 3 right")
    assert (mugs.title, mugs.caption) == ("cat-mug", "0 of 3 right; 1 taken for another kind")
    cells = re.findall(r'cell (\w+)" .*?opacity:([\d.]+)"><title>([^<]+)<', bags.chart)
    names = [concept.name for concept in CATALOG.concepts]
    assert cells == [
        ("right", "0.62", f"{names[0]} taken for {names[0]}: 1 of 2"),
        ("wrong", "0.62", f"{names[0]} taken for {names[1]}: 1 of 2"),
        ("right", "1.00", f"{names[1]} taken for {names[1]}: 1 of 1"),
    ]


def test_categories_have_their_own_numbers() -> None:
    def rounds(right: Sequence[int]) -> list[Prediction]:
        return [
            Prediction(
                item=f"{n}", concept=IDS[n], category=IDS[n].partition("/")[0], options=("a", "b"), expected=0,
                answered=0 if n in right else 1,
            )
            for n in range(4)
        ]  # fmt: skip

    [block] = by_category(report("game", {"base": rounds([0]), "new": rounds([0, 1, 2])}))
    assert block.title == "The game: target found"
    assert [(row.name, row.things) for row in block.rows] == [("bag", 2), ("mug", 2)]
    titles = [re.findall(r"<title>(.+?) \(", row.chart) for row in block.rows]
    said = [[title.replace("\xa0", " ") for title in row] for row in titles]
    assert said == [["base: 50 %", "new: 100 %"], ["base: 0 %", "new: 50 %"]]
    one = [p for p in rounds([0]) if p.category == "cat-bag"]
    assert by_category(report("game", {"base": one})) == ()  # one category says nothing new


def test_length_is_cut_into_fifths_and_equal_lengths_stay_together(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Dots] = []
    monkeypatch.setattr(figures, "dot_chart", lambda title, series, *names, **options: drawn.extend(series) or "")
    items = [ranked(n, n if n < 2 else 0) for n in range(4)]
    figures.accuracy_by_length(report("identification", {"base": items}))
    [line] = drawn
    # "A photo of a bag. one …": 5 words and 1 to 4 more
    assert line.xs == [6, 7, 8, 9]
    assert line.ys == [1, 1, 0, 0]


def test_spreads_are_written_in_the_unit_of_the_number() -> None:
    assert (format_spread("accuracy", 0.034), format_spread("f1", 0.0204)) == ("3.4", "0.020")
    assert format_spread("words_mean", 1.26) == "1.3"
