"""Where two speakers differ: items that one has right and the other wrong, with what each of them wrote.

Both directions are listed and all four counts are given, so that a gallery of wins cannot pass for the result. Concepts
take turns in a list, the clearest item of each first: the one whose right option gained most probability.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from lewis_core.artifacts import ArtifactRef
from lewis_core.config.analyses import ExamplesConfig
from lewis_core.errors import EvaluationError
from lewis_core.evaluation.analyses.load import Evaluation, distribution, load_evaluations, mode_of
from lewis_core.evaluation.records import Prediction
from lewis_core.records import Database, JsonObject, Record, load_record

FILE = "examples.json"


class Example(Record):
    """One item that exactly one of two speakers has right."""

    item: str
    concept: str
    category: str
    image: str | None
    options: tuple[str, ...]
    """As the speaker that is right was offered them."""
    expected: str
    other_answered: str | None
    """What was answered from the text of the speaker that is wrong; ``None`` for an invalid answer or no text."""
    text: str
    """Description of the concept by the speaker that is right."""
    other_text: str
    """By the one that is wrong."""
    probability: float | None
    """Of the right option, for the speaker that is right; ``None`` where answers came without probabilities."""
    other_probability: float | None
    """For the one that is wrong; ``None`` where nothing could be asked."""


class Examples(Record):
    """One evaluation, in one mode, of two speakers."""

    baseline: str
    speaker: str
    evaluation: str
    answering: str
    mode: str
    both_right: int
    speaker_only: int
    baseline_only: int
    neither: int
    wins: tuple[Example, ...]
    """The speaker is right, the baseline wrong."""
    losses: tuple[Example, ...]
    """The other way round."""


def find_examples(
    baseline: list[ArtifactRef],
    other: list[ArtifactRef],
    baseline_database: ArtifactRef,
    other_database: ArtifactRef,
    output_dir: Path,
    config: ExamplesConfig,
) -> JsonObject:
    """Find items in which two speakers differ.

    Args:
        baseline: The baseline's evaluations.
        other: The other speaker's evaluations of the same items, with the same seeds.
        baseline_database: What the baseline wrote.
        other_database: What the other speaker wrote.
        output_dir: Receives ``examples.json``: a list of :class:`Examples`.
        config: How many are listed.

    Returns:
        Counts of wins and losses by evaluation and mode.

    Raises:
        EvaluationError: If the two share no evaluation, or no item of one.
    """
    before = {one.key[1:]: one for one in load_evaluations(baseline)}
    after = {one.key[1:]: one for one in load_evaluations(other)}
    shared = [key for key in after if key in before]
    if not shared:
        raise EvaluationError(f"the speakers share no evaluation: {sorted(before)} and {sorted(after)}")
    texts = [_texts(baseline_database), _texts(other_database)]
    found = [
        compare_mode(before[key], after[key], mode, texts[0], texts[1], config)
        for key in shared
        for mode in sorted({mode_of(prediction) for prediction in after[key].predictions})
    ]
    content = [one.model_dump(mode="json") for one in found]
    (output_dir / FILE).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return {
        "/".join(filter(None, (one.evaluation, one.answering, one.mode))): {
            "speaker_only": one.speaker_only,
            "baseline_only": one.baseline_only,
        }
        for one in found
    }


def compare_mode(
    baseline: Evaluation,
    other: Evaluation,
    mode: str,
    baseline_texts: Mapping[str, str],
    other_texts: Mapping[str, str],
    config: ExamplesConfig,
) -> Examples:
    """Compare two speakers on the items of one mode.

    Raises:
        EvaluationError: If they share no item.
    """
    before = {p.item: p for p in baseline.predictions if mode_of(p) == mode}
    pairs = [(before[p.item], p) for p in other.predictions if mode_of(p) == mode and p.item in before]
    if not pairs:
        raise EvaluationError(
            f"{other.result.evaluation} {mode}: {baseline.result.speaker} and {other.result.speaker} share no item; "
            "evaluate both with the same settings and seed"
        )
    wins = [(b, a) for b, a in pairs if a.is_correct and not b.is_correct]
    losses = [(b, a) for b, a in pairs if b.is_correct and not a.is_correct]
    both = sum(b.is_correct and a.is_correct for b, a in pairs)
    return Examples(
        baseline=baseline.result.speaker,
        speaker=other.result.speaker,
        evaluation=other.result.evaluation,
        answering=other.result.answering,
        mode=mode,
        both_right=both,
        speaker_only=len(wins),
        baseline_only=len(losses),
        neither=len(pairs) - both - len(wins) - len(losses),
        wins=take_turns([_example(a, b, other_texts, baseline_texts) for b, a in wins], config.listed),
        losses=take_turns([_example(b, a, baseline_texts, other_texts) for b, a in losses], config.listed),
    )


def take_turns(examples: Sequence[Example], count: int) -> tuple[Example, ...]:
    """Choose examples: the clearest of each concept, then the second of each, and so on; ties by item."""
    turn: dict[str, int] = {}
    ranked = []
    for example in sorted(examples, key=_clearness):
        turn[example.concept] = turn.get(example.concept, 0) + 1
        ranked.append((turn[example.concept], *_clearness(example), example))
    return tuple(entry[-1] for entry in sorted(ranked, key=lambda entry: entry[:3])[:count])


def _clearness(example: Example) -> tuple[float, str]:
    return (example.other_probability or 0.0) - (example.probability or 0.0), example.item


def _texts(database: ArtifactRef) -> dict[str, str]:
    return {entry.concept: entry.text for entry in load_record(database.file("database.json"), Database).entries}


def _example(right: Prediction, wrong: Prediction, texts: Mapping[str, str], other_texts: Mapping[str, str]) -> Example:
    expected = right.options[right.expected or 0]
    belief = dict(zip(right.options, distribution(right), strict=False))
    other_belief = dict(zip(wrong.options, distribution(wrong), strict=False))
    return Example(
        item=right.item,
        concept=right.concept,
        category=right.category,
        image=right.image,
        options=right.options,
        expected=expected,
        other_answered=None if wrong.answered is None else wrong.options[wrong.answered],
        text=texts.get(right.concept, ""),
        other_text=other_texts.get(right.concept, ""),
        probability=belief.get(expected),
        other_probability=other_belief.get(expected),
    )
