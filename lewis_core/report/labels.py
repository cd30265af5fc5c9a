"""How names and numbers are written in the report."""

import re
from typing import Literal, NamedTuple

EVALUATION_TITLES = {
    "game": "The game",
    "identification": "Identification",
    "recognition": "Recognition",
    "vqa": "Questions",
    "descriptions": "Descriptions",
}
EVALUATION_QUESTIONS = {
    "game": "Does the listener find the thing among look-alikes from the words alone?",
    "identification": "Whose thing is in this photo, given the descriptions of look-alikes?",
    "recognition": "Is my thing in this photo, yes or no, given its description?",
    "vqa": "Multiple-choice questions about my thing, with its description as the memory.",
    "descriptions": "What the texts say, and whether it is true.",
}
METRIC_TITLES = {
    ("game", "accuracy"): "target found",
    ("game", "accuracy_described"): "target found, described things only",
    ("game", "strict_accuracy"): "every yes and no right",
    ("game", "target_yes_probability"): "P(yes) of the target",
    ("game", "exact_reader_accuracy"): "target found by an exact reader",
    ("identification", "ranking_accuracy"): "right among all look-alikes",
    ("identification", "accuracy_oracle"): "right letter, truth always offered",
    ("identification", "accuracy_retrieval"): "right letter, end to end",
    ("recognition", "weighted_accuracy"): "weighted accuracy",
    ("recognition", "f1"): "F1 of yes",
    ("vqa", "accuracy"): "right answer",
    ("descriptions", "state_rate"): "mentions a state",
    ("descriptions", "location_rate"): "mentions a location",
    ("descriptions", "format_rate"): "follows the format",
    ("descriptions", "words_mean"): "words per description",
    ("descriptions", "repeated_sentence_rate"): "repeated sentences",
    ("descriptions", "overlap_with_others"): "overlap with a look-alike’s text",
    ("descriptions", "duplicate_text_rate"): "same text as a look-alike’s",
    ("descriptions", "identity_precision"): "precision of identity claims",
    ("descriptions", "identity_recall"): "identity attributes told",
    ("descriptions", "identity_named_count"): "identity attributes per description",
    ("descriptions", "hallucinated_rate"): "descriptions with a false claim",
    ("descriptions", "state_rate_exact"): "mentions a state or pose, read exactly",
    ("descriptions", "location_rate_exact"): "mentions a location, read exactly",
    ("descriptions", "repeated_fact_rate"): "facts told again",
    ("descriptions", "unparsed_rate"): "sentences not understood",
}
"""Names of the metrics that a reader meets first; the others are spelled out by :func:`metric_name`."""
WORDS = {"auc": "AUC", "f1": "F1", "vqa": "VQA", "mrr": "MRR", "ece": "calibration error", "num": "number of"}
LOWER_IS_BETTER = re.compile(
    r"state|location|pose_|transient|invalid|repe[at]|hallucin|unparsed|malformed|failed|overlap|duplicate|degenerate|false_|missing"
    r"|empty|untrue|ece|entropy"
)
NEUTRAL = re.compile(r"words|tokens|length|control|blind|chance|position|captured_mass")
FRACTION = re.compile(r"(^|[_/])(f1|auc|ece|mrr|entropy|margin|brier|correlation)")
NUMBER = re.compile(r"words|tokens|length|count|num_|per_")
NO_BREAK = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"


class MetricStyle(NamedTuple):
    """How one metric is written: ``percent`` (rates), ``fraction`` (F1, AUC) or ``number`` (counts, words)."""

    unit: Literal["percent", "fraction", "number"]
    better: Literal["higher", "lower", "neither"]


def metric_style(name: str) -> MetricStyle:
    """Tell unit and direction from a metric's name."""
    lowered = name.lower()
    unit: Literal["percent", "fraction", "number"] = "percent"
    if FRACTION.search(lowered):
        unit = "fraction"
    elif NUMBER.search(lowered) and "rate" not in lowered:
        unit = "number"
    if NEUTRAL.search(lowered):
        return MetricStyle(unit, "neither")
    return MetricStyle(unit, "lower" if LOWER_IS_BETTER.search(lowered) else "higher")


def metric_name(evaluation: str, name: str) -> str:
    """Write a metric's name for people: ``recall_at_k`` becomes ``recall@k``, ``f1_hard`` ``F1 hard``."""
    if title := METRIC_TITLES.get((evaluation, name)):
        return title
    words = re.split(r"[_\s]+", name.replace("_at_", "@").replace("/", ", "))
    return " ".join(WORDS.get(word, word) for word in words if word)


def percent(value: float, digits: int = 0) -> str:
    """Write a share, e.g. ``81 %``; tiny and nearly full shares keep a decimal so that they never round to 0 or 100."""
    if digits == 0 and (0 < value < 0.005 or 0.995 <= value < 1):
        digits = 1
    return f"{100 * value:.{digits}f}{NO_BREAK}%"


def beside_bar(probability: float) -> str:
    """Write a probability in percent in up to four signs: ``56``; near the ends ``0.4``, ``0.02``, ``<.01``, ``99.6``.

    Two candidates of which one was picked should not both read 0.
    """
    share = 100 * probability
    if 0 < share < 0.95:
        return "<.01" if share < 0.005 else f"{share:.{1 if share >= 0.095 else 2}f}"
    return f"{share:.1f}" if 99.5 <= share < 99.95 else f"{share:.0f}"


def format_value(name: str, value: float | None) -> str:
    """Write a metric's value in its own unit; a dash when nothing was measured."""
    if value is None:
        return "–"
    match metric_style(name).unit:
        case "percent":
            return percent(value)
        case "fraction":
            return f"{value:.2f}"
    return f"{value:.1f}"


def format_interval(name: str, low: float | None, high: float | None) -> str:
    """Write an interval, e.g. ``74–87``; nothing when there is none."""
    if low is None or high is None:
        return ""
    match metric_style(name).unit:
        case "percent":
            return f"{_signed_zero(100 * low, 0)}–{_signed_zero(100 * high, 0)}"
        case "fraction":
            return f"{low:.2f}–{high:.2f}"
    return f"{low:.1f}–{high:.1f}"


def format_difference(name: str, value: float) -> str:
    """Write a signed difference, e.g. ``+65`` (points), ``+0.21`` or ``−3.2``."""
    match metric_style(name).unit:
        case "percent":
            return _sign(100 * value, 0)
        case "fraction":
            return _sign(value, 2)
    return _sign(value, 1)


def format_difference_interval(name: str, low: float, high: float) -> str:
    """Write the interval of a difference, e.g. ``+57 to +73``."""
    return f"{format_difference(name, low)} to {format_difference(name, high)}"


def format_spread(name: str, value: float) -> str:
    """Write a standard deviation in the metric's unit, without a sign: ``3.4`` (points), ``0.02``, ``1.3``."""
    match metric_style(name).unit:
        case "percent":
            return f"{100 * value:.1f}"
        case "fraction":
            return f"{value:.3f}"
    return f"{value:.1f}"


def format_p(value: float) -> str:
    """Write a p-value: ``p < 0.001``, ``p = 0.03``."""
    if value < 0.001:
        return f"p{NO_BREAK}<{NO_BREAK}0.001"
    return f"p{NO_BREAK}={NO_BREAK}{value:.3f}" if value < 0.01 else f"p{NO_BREAK}={NO_BREAK}{value:.2f}"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Write a number with its noun: ``1 photo``, ``3 photos``."""
    return f"{number:,}{NO_BREAK}{noun if number == 1 else plural or noun + 's'}"


def _signed_zero(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


def _sign(value: float, digits: int) -> str:
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return f"{'+' if value > 0 else MINUS}{text}"
