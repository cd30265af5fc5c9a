"""Figures behind the headline: calibration, accuracy by length and by category, and what is taken for what."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from lewis_core.config.evaluation import StatisticsConfig
from lewis_core.evaluation import metrics
from lewis_core.evaluation.records import Prediction
from lewis_core.evaluation.statistics import bootstrap, mean_measure, point
from lewis_core.report import labels
from lewis_core.report.charts import Estimate, interval_chart, label_text, speaker_style, svg, vertical
from lewis_core.report.load import LISTENER, ReportData, Speaker
from lewis_core.report.points import Dots, dot_chart

FEW = 5
"""Bins of the calibration plot with fewer answers are left out: they would be noise."""
MAX_SPEAKERS = 6
"""Lines in one figure."""
BINS = 5
"""Bins of description length, with as many descriptions each as far as possible."""
INTERVALS = StatisticsConfig(resamples=1000)
CELL, NAME_ROOM, MAX_NAMED = 13, 74, 24
RANKED = "ranking"
YES, NO = 0, 1
MEASURED = (
    ("game", None, "target found"),
    ("identification", RANKED, "right thing named"),
    ("vqa", None, "right answer"),
)
"""Evaluations that are shown by category: name, mode, what is counted."""


@dataclass(frozen=True)
class Figure:
    """A chart, its title and what to see in it."""

    title: str
    caption: str
    slug: str
    chart: Markup


@dataclass(frozen=True)
class CategoryRow:
    """One category, with an estimate for each speaker."""

    name: str
    things: int
    chart: Markup


@dataclass(frozen=True)
class CategoryBlock:
    """One evaluation, category by category."""

    title: str
    rows: tuple[CategoryRow, ...]


@dataclass(frozen=True)
class Confusions:
    """What one speaker's descriptions are taken for, one square a category."""

    speaker: str
    style: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class YesNo:
    """Answers of recognition, counted: rows are the truth."""

    speaker: str
    style: str
    hits: int
    misses: int
    false_alarms: int
    rejections: int
    invalid: int
    failed: int


def draw_figures(data: ReportData) -> tuple[Figure, ...]:
    """Draw the figures for which there is something to draw."""
    found = (calibration(data), accuracy_by_length(data))
    return tuple(figure for figure in found if figure is not None)


def calibration(data: ReportData) -> Figure | None:
    """Reliability plot of recognition: how often yes is right, for answers of about the same P(yes)."""
    series, told = [], []
    for speaker, predictions in _answers(data, "recognition"):
        scored = [p for p in predictions if p.error is None and p.probabilities and p.tags.get("mode") == "description"]
        if len(scored) < FEW:
            continue
        places = metrics.calibration_bins([p.probabilities[0] for p in scored])
        bins = [[p for p, place in zip(scored, places, strict=True) if place == b] for b in range(metrics.ECE_BINS)]
        filled = [some for some in bins if len(some) >= FEW]
        series.append(
            Dots(
                speaker.name,
                speaker_style(speaker.slot),
                [float(np.mean([p.probabilities[0] for p in some])) for some in filled],
                [float(np.mean([p.expected == YES for p in some])) for some in filled],
                [len(some) / len(scored) for some in filled],
            )
        )
        error = _error(data, speaker)
        told.append(f"{speaker.name} {error:.2f}" if error is not None else speaker.name)
    if not series:
        return None
    caption = (
        f"On the diagonal, P(yes) means what it says. Larger dots, more answers; fewer than {FEW} make none. Error: "
    )
    chart = dot_chart("Calibration", series, "P(yes)", "share of photos that do show the thing", diagonal=True)
    return Figure("Calibration of yes and no", caption + ", ".join(told) + ".", "calibration", chart)


def accuracy_by_length(data: ReportData) -> Figure | None:
    """Success of short and of long descriptions, for each speaker."""
    series = []
    for evaluation, mode in (("game", None), ("identification", RANKED)):
        for speaker, predictions in _answers(data, evaluation):
            words = {name: len(entry.text.split()) for name, entry in speaker.entries.items() if entry.text}
            asked = [p for p in predictions if p.concept in words and (mode is None or p.tags.get("mode") == mode)]
            if asked:
                series.append(_by_length(speaker, asked, words))
        if series:
            what = "target found in the game" if evaluation == "game" else "right thing named"
            caption = "Each dot: a fifth of a speaker’s descriptions, from its shortest to its longest."
            chart = dot_chart("Accuracy by length", series, "words per description", what)
            return Figure("Length and success", caption, "length", chart)
    return None


def _by_length(speaker: Speaker, asked: Sequence[Prediction], words: Mapping[str, int]) -> Dots:
    """Cut concepts into bins by the length of their descriptions; equal lengths stay together."""
    concepts = sorted({p.concept for p in asked}, key=lambda name: (words[name], name))
    edges = [words[concepts[len(concepts) * cut // BINS]] for cut in range(1, BINS)]
    bins: dict[int, list[Prediction]] = {}
    for prediction in asked:
        bins.setdefault(sum(words[prediction.concept] >= edge for edge in edges), []).append(prediction)
    ordered = [bins[place] for place in sorted(bins)]
    return Dots(
        speaker.name,
        speaker_style(speaker.slot),
        [float(np.mean([words[p.concept] for p in some])) for some in ordered],
        [float(np.mean([p.is_correct for p in some])) for some in ordered],
        [len(some) / len(asked) for some in ordered],
    )


def by_category(data: ReportData) -> tuple[CategoryBlock, ...]:
    """Success in each category with intervals, for the evaluations that count right answers."""
    blocks = []
    for evaluation, mode, what in MEASURED:
        answers = [
            (speaker, [p for p in predictions if mode is None or p.tags.get("mode") == mode])
            for speaker, predictions in _answers(data, evaluation)
        ]
        categories = sorted({p.category for _, predictions in answers for p in predictions})
        if len(categories) > 1:
            title = f"{labels.EVALUATION_TITLES[evaluation]}: {what}"
            blocks.append(CategoryBlock(title, tuple(_category_row(data, name, answers) for name in categories)))
    return tuple(blocks)


def _category_row(
    data: ReportData, category: str, answers: Sequence[tuple[Speaker, Sequence[Prediction]]]
) -> CategoryRow:
    estimates, things = [], 0
    for speaker, predictions in answers:
        measure = mean_measure([(p.concept, float(p.is_correct)) for p in predictions if p.category == category])
        low, high = bootstrap(measure, INTERVALS)
        value, things = point(measure) if measure.n else None, max(things, len(measure.names))
        shown = labels.format_value("accuracy", value)
        title = f"{speaker.name}: {shown} ({labels.format_interval('accuracy', low, high)})"
        estimates.append(Estimate(speaker_style(speaker.slot), value, low, high, title))
    word = next((c.category_word for c in data.catalog.concepts if c.category == category), category)
    return CategoryRow(word, things, interval_chart(f"{word}, by speaker", estimates))


def confusions(data: ReportData) -> tuple[Confusions, ...]:
    """Which thing is taken for which, in the ranking of identification: the baseline and the main speaker."""
    found = []
    wanted = {speaker.name for speaker in (data.baseline, data.main) if speaker is not None}
    for speaker, predictions in _answers(data, "identification"):
        ranked = [p for p in predictions if p.tags.get("mode") == RANKED and p.error is None]
        if speaker.name not in wanted or not ranked:
            continue
        ordered = sorted(ranked, key=lambda p: (p.category, p.item))
        figures = [_square(name, list(some)) for name, some in itertools.groupby(ordered, key=lambda p: p.category)]
        found.append(Confusions(speaker.name, speaker_style(speaker.slot), tuple(figures)))
    return tuple(found)


def _square(category: str, ranked: Sequence[Prediction]) -> Figure:
    """One category: rows are things, columns what their photos were taken for."""
    right = sum(p.is_correct for p in ranked)
    pairs = Counter((p.concept, p.options[p.answered]) for p in ranked if p.answered is not None)
    totals = Counter(p.concept for p in ranked)
    own = sorted({p.concept for p in ranked} | {taken for _, taken in pairs if taken.partition("/")[0] == category})
    foreign = sum(count for (_, taken), count in pairs.items() if taken not in own)
    place = {name: index for index, name in enumerate(own)}
    named = len(own) <= MAX_NAMED
    left = NAME_ROOM if named else 4
    body = [vertical("grid", left + CELL * index, 0, CELL * len(own)) for index in range(len(own) + 1)] + [
        Markup('<line class="grid" x1="{}" x2="{}" y1="{y}" y2="{y}"/>').format(
            left, left + CELL * len(own), y=CELL * i
        )
        for i in range(len(own) + 1)
    ]
    for (truth, taken), count in sorted(pairs.items()):
        if taken in place:
            body.append(_cell(left, place[truth], place[taken], count, totals[truth], truth, taken))
    if named:
        body += [label_text(left - 5, CELL * index + 10, _short(name), "end") for name, index in place.items()]
    size = CELL * len(own)
    chart = svg(f"What is taken for what: {category}", left + size + 2, size + 2, body)
    caption = f"{right} of {len(ranked)} right" + (f"; {foreign} taken for another kind" if foreign else "")
    return Figure(category, caption, f"confusion-{category}", chart)


def _cell(left: float, row: int, column: int, count: int, total: int, truth: str, taken: str) -> Markup:
    style = "right" if truth == taken else "wrong"
    return Markup(
        '<rect class="cell {}" x="{}" y="{}" width="{}" height="{}" style="opacity:{:.2f}"><title>{}</title></rect>'
    ).format(
        style, left + CELL * column + 0.5, CELL * row + 0.5, CELL - 1, CELL - 1, 0.25 + 0.75 * count / total,
        f"{_short(truth)} taken for {_short(taken)}: {count} of {total}",
    )  # fmt: skip


def _short(concept: str) -> str:
    name = concept.partition("/")[2] or concept
    return name if len(name) <= 11 else name[:10] + "…"


def count_yes_no(data: ReportData) -> tuple[YesNo, ...]:
    """Count the answers of recognition for every speaker."""
    return tuple(
        _count(speaker, [p for p in predictions if p.tags.get("mode") == "description"])
        for speaker, predictions in _answers(data, "recognition")
    )


def _count(speaker: Speaker, predictions: Sequence[Prediction]) -> YesNo:
    pairs = Counter((p.expected, p.answered) for p in predictions if p.error is None)
    return YesNo(
        speaker=speaker.name,
        style=speaker_style(speaker.slot),
        hits=pairs[YES, YES],
        misses=pairs[YES, NO],
        false_alarms=pairs[NO, YES],
        rejections=pairs[NO, NO],
        invalid=pairs[YES, None] + pairs[NO, None],
        failed=sum(p.error is not None for p in predictions),
    )


def _answers(data: ReportData, evaluation: str) -> list[tuple[Speaker, Sequence[Prediction]]]:
    """Items of an evaluation for each speaker that has any; the training's listener's where several answered."""
    found = [(speaker, data.find(evaluation, speaker.name)) for speaker in data.speakers[:MAX_SPEAKERS]]
    same = {item.result.answering for _, item in found if item is not None}
    answering = LISTENER if LISTENER in same else next(iter(sorted(same)), None)
    return [
        (speaker, item.predictions)
        for speaker, item in found
        if item is not None and item.predictions and item.result.answering == answering
    ]


def _error(data: ReportData, speaker: Speaker) -> float | None:
    """Calibration error of a speaker's recognition, as it was reported."""
    found = data.find("recognition", speaker.name)
    return next((m.value for m in found.result.metrics if m.name == "ece"), None) if found else None
