"""The result in words, derived from the numbers; honest when nothing improved or the difference may be chance."""

import re
from dataclasses import dataclass

from markupsafe import Markup

from lewis_core.evaluation.records import EvaluationResult, Metric, PairedTest, SeedMetric
from lewis_core.report import labels
from lewis_core.report.charts import change_chart, speaker_style
from lewis_core.report.load import LISTENER, Evaluation, ReportData
from lewis_core.report.tables import chance_level, find_metric, is_significant

CLAIMS = (
    ("game", "accuracy", "the listener finds the right thing {value} of the time"),
    ("identification", "ranking_accuracy", "the right thing is identified {value} of the time"),
    ("recognition", "weighted_accuracy", "a thing is recognised with a weighted accuracy of {value}"),
    ("vqa", "accuracy", "{value} of the questions are answered correctly"),
)
"""What the headline may be about, in order of preference: evaluation, metric, claim."""
FIGURES = (
    ("game", ("accuracy",), "The game", "target found"),
    ("identification", ("ranking_accuracy", "accuracy_oracle"), "Identification", "right thing named"),
    ("recognition", ("f1", "weighted_accuracy"), "Recognition", "F1 of yes"),
    ("vqa", ("accuracy",), "Questions", "right answer"),
    ("descriptions", ("state_rate",), "State", "descriptions that mention it"),
    ("descriptions", ("location_rate",), "Location", "descriptions that mention it"),
)
"""Evaluation, metric names in order of preference, title and unit of the key figures under the headline."""


CHANCE_IS_LIKELY = re.compile("not distinguishable from|worse than chance")
"""What the verdict of an evaluation says when its answers are no better than guesses."""


@dataclass(frozen=True)
class Headline:
    """Title sentence and what qualifies it."""

    title: str
    qualifiers: tuple[str, ...]


@dataclass(frozen=True)
class KeyFigure:
    """One number before and after."""

    title: str
    unit: str
    before: str
    after: str
    verdict: str
    chart: Markup


@dataclass(frozen=True)
class Change:
    """A metric of the main speaker, beside the baseline's."""

    evaluation: Evaluation
    metric: Metric
    before: Metric | None
    test: PairedTest | None


def find_change(
    data: ReportData, evaluation: str, names: tuple[str, ...], answering: str | None = None
) -> Change | None:
    """Look up the first of the named metrics that the main speaker has a value of."""
    found = data.find(evaluation, data.main.name, answering) if data.main else None
    if found is None or data.main is None:
        return None
    metric = next((m for name in names if (m := find_metric(found.result, name)) and m.value is not None), None)
    if metric is None:
        return None
    base = data.find(evaluation, data.baseline.name, found.result.answering) if data.baseline else None
    before = find_metric(base.result, metric.name) if base else None
    test = data.test(evaluation, found.result.answering, metric.name, data.main.name)
    return Change(found, metric, before if before and before.value is not None else None, test)


def write_headline(data: ReportData, title: str) -> Headline:
    """Say what came out, with numbers.

    Args:
        data: All inputs of the report.
        title: Said when no evaluation was made.
    """
    for evaluation, metric, claim in CLAIMS:
        change = find_change(data, evaluation, (metric,))
        if change and (seeds := find_seeds(data, change)):
            return _headline_of_seeds(data, change, seeds, claim)
        if change:
            return Headline(_claim(data, change, claim), tuple(_qualify(data, change)))
    if data.main and data.main.entries:
        return Headline(f"{labels.count(len(data.main.entries), 'thing')} described, not evaluated yet", ())
    return Headline(title, ())


def find_seeds(data: ReportData, change: Change) -> SeedMetric | None:
    """The same number of all seeds together, if the main speaker is one of several."""
    return _seed_metric(data, change.evaluation.result, change.metric.name)


def _seed_metric(data: ReportData, result: EvaluationResult, metric: str) -> SeedMetric | None:
    group = next((seeds for seeds in data.seeds if data.main and data.main.name in seeds.speakers), None)
    where = (result.evaluation, result.answering, metric)
    return next((m for m in group.metrics if (m.evaluation, m.answering, m.metric) == where), None) if group else None


def _headline_of_seeds(data: ReportData, change: Change, seeds: SeedMetric, claim: str) -> Headline:
    """The headline of several seeds: their mean, however well one of them did."""
    name, number = change.metric.name, len(seeds.values)
    said = claim.format(value=labels.format_value(name, seeds.mean))
    title = f"Mean of {labels.count(number, 'seed')}: {said}"
    before = seeds.test.baseline if seeds.test else None
    if before is not None and data.baseline:
        title += f"; with {data.baseline.name}, {labels.format_value(name, before)}"
    if seeds.test and not is_significant(seeds.test):
        title = f"No clear difference. {title}"
    values = ", ".join(labels.format_value(name, value) for value in seeds.values)
    measured, semicolon, guessing = _measured(change).rstrip(".").partition(";")
    sentences = [f"{measured}, by each of {labels.count(number, 'seed')} ({values}){semicolon}{guessing}."]
    sentences += [_how_sure(seeds.test)] if seeds.test else []
    for other in _other_listeners(data):
        found = find_change(data, change.evaluation.result.evaluation, (name,), other)
        theirs = find_seeds(data, found) if found else None
        if theirs is None or theirs.test is None or change.evaluation.result.answering == other:
            continue
        old, new = (labels.format_value(name, value) for value in (theirs.test.baseline, theirs.mean))
        sentences.append(f"The {other} listener says {new} (mean) against {old}.")
    warnings = [f"{data.main.name if data.main else ''}: {warning}." for warning in change.evaluation.result.warnings]
    return Headline(f"{title}.", (*sentences, *warnings))


def key_figures(data: ReportData) -> tuple[KeyFigure, ...]:
    """Make the figures under the headline, those that were measured."""
    figures = []
    for evaluation, names, title, unit in FIGURES:
        change = find_change(data, evaluation, names)
        if change is None or change.metric.value is None or data.main is None:
            continue
        before = change.before.value if change.before else None
        seeds = find_seeds(data, change)
        value = seeds.mean if seeds else change.metric.value
        test = seeds.test if seeds else change.test
        figures.append(
            KeyFigure(
                title=title,
                unit=unit + (f", mean of {labels.count(len(seeds.values), 'seed')}" if seeds else ""),
                before=labels.format_value(change.metric.name, before) if before is not None else "",
                after=labels.format_value(change.metric.name, value),
                verdict=_verdict(test) if test else "",
                chart=change_chart(title, before, value, speaker_style(data.main.slot)),
            )
        )
    return tuple(figures)


def find_verdicts(data: ReportData) -> tuple[str, ...]:
    """Say whether those that training could not please see the gain too: other listeners, and an exact reader.

    With several speakers beside the baseline the rows of the table say it for each.
    """
    if len(data.speakers) > 2:
        return ()
    change = find_change(data, "game", ("accuracy",))
    verdicts = []
    for name in _other_listeners(data) if change and change.test else ():
        other = find_change(data, "game", ("accuracy",), name)
        if change and change.test and other and other.test:
            theirs, ours = (labels.format_difference("accuracy", test.difference) for test in (other.test, change.test))
            verdicts.append(f"The {name} listener gains {theirs} points where the training’s listener gains {ours}.")
    if exact := find_change(data, "game", ("exact_reader_accuracy",)):
        value = labels.format_value(exact.metric.name, exact.metric.value)
        before = labels.format_value(exact.metric.name, exact.before.value) if exact.before else ""
        verdicts.append(
            "A reader without a neural network, which compares each sentence with the truth, finds the target "
            f"{value} of the time" + (f" ({before} {_earlier(data)})." if before else ".")
        )
    return tuple(verdicts)


def _other_listeners(data: ReportData) -> list[str]:
    return sorted({e.result.answering for e in data.evaluations if e.result.evaluation == "game"} - {LISTENER})


def _claim(data: ReportData, change: Change, claim: str) -> str:
    """The headline: improvement is claimed only if a test supports it, and training only if there was one."""
    value = labels.format_value(change.metric.name, change.metric.value)
    said = claim.format(value=value)
    if change.before is None or data.baseline is None or data.main is None:
        return f"{_capital(said)}."
    before = labels.format_value(change.metric.name, change.before.value)
    if change.test and not is_significant(change.test):
        return f"No clear difference: {said}, against {before} {_earlier(data)}."
    if change.test is None or data.training is None:
        return f"With {data.main.name}, {said}; {_earlier(data)}, {before}."
    now = said.replace("the listener finds", "the listener now finds").replace("are answered", "are now answered")
    if change.test.difference > 0:
        return f"{_capital(now)}, up from {before}."
    return f"It got worse: {now}, down from {before}."


def _earlier(data: ReportData) -> str:
    """Name the baseline's side of a comparison."""
    return "before training" if data.training else f"with {data.baseline.name if data.baseline else 'the baseline'}"


def _qualify(data: ReportData, change: Change) -> list[str]:
    """Sentences under the headline: what was measured, how sure it is, and what an independent listener says."""
    result = change.evaluation.result
    sentences = [_measured(change)]
    if change.test:
        sentences.append(_how_sure(change.test))
    sentences += _independent(data, change)
    sentences += _other_speakers(data, result.evaluation, change)
    if CHANCE_IS_LIKELY.search(result.verdict):
        sentences.append(f"Compared with guessing: {result.verdict}.")
    return [*sentences, *(f"{_capital(warning)}." for warning in result.warnings)]


def _measured(change: Change) -> str:
    result, metric = change.evaluation.result, change.metric
    text = f"Measured on {labels.count(metric.n, 'item')} about {labels.count(result.concepts, 'thing')}"
    if result.evaluation == "game":
        text = f"Measured in {labels.count(metric.n, 'round')} about {labels.count(result.concepts, 'held-out thing')}"
    chance = chance_level(metric)
    return text + (f"; guessing would score {labels.format_value(metric.name, chance)}." if chance is not None else ".")


def _how_sure(test: PairedTest) -> str:
    difference = labels.format_difference(test.metric, test.difference)
    interval = labels.format_difference_interval(test.metric, test.low, test.high)
    doubt = f"95{labels.NO_BREAK}% interval {interval}, {labels.format_p(test.p_value)}"
    sentence = f"The difference is {difference} points ({doubt})"
    return sentence + ("." if is_significant(test) else ": it may well be chance.")


def _independent(data: ReportData, change: Change) -> list[str]:
    """What listeners that were not used in training say about the same metric."""
    sentences = []
    for name in _other_listeners(data) if change.evaluation.result.evaluation == "game" else ():
        other = find_change(data, "game", (change.metric.name,), name)
        if other is None or change.evaluation.result.answering == name:
            continue
        sentences.append(independent_verdict(name, change, other))
    return sentences


def independent_verdict(name: str, change: Change, other: Change) -> str:
    """Say how much of a gain another listener sees."""
    value = labels.format_value(other.metric.name, other.metric.value)
    who = "A listener that no training has seen" if name == "independent" else f"The listener “{name}”"
    if other.before is None or other.test is None:
        return f"{who} finds the right thing {value} of the time."
    before = labels.format_value(other.metric.name, other.before.value)
    if not is_significant(other.test):
        return f"{who} sees no clear difference: {value}, against {before} for the baseline."
    if other.test.difference < 0:
        return f"{who} disagrees: {value}, down from {before}."
    gain = change.test.difference if change.test else 0.0
    kept = f", {labels.percent(other.test.difference / gain)} of the gain" if gain > 0 else ""
    return f"{who} agrees: {value}, up from {before}{kept}."


def _other_speakers(data: ReportData, evaluation: str, change: Change) -> list[str]:
    """The spread over further trained speakers, e.g. other seeds."""
    others = [data.find(evaluation, s.name, change.evaluation.result.answering) for s in data.speakers[2:]]
    found = [find_metric(item.result, change.metric.name) for item in others if item]
    values = [metric.value for metric in [change.metric, *found] if metric and metric.value is not None]
    if len(values) < 2:
        return []
    low, high = (labels.format_value(change.metric.name, value) for value in (min(values), max(values)))
    return [f"Over the {len(values)} speakers compared with the baseline, it ranges from {low} to {high}."]


def _verdict(test: PairedTest) -> str:
    if not is_significant(test):
        return "may be chance"
    better = labels.metric_style(test.metric).better
    if better == "neither":
        return ""
    return "better" if (test.difference > 0) == (better == "higher") else "worse"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
