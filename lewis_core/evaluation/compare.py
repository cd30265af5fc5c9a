"""Is one speaker better than the baseline, by more than chance, on the very same items?

Only the headline numbers are tested, those in which silence is wrong; testing everything would find something.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lewis_core.artifacts import ArtifactRef
from lewis_core.config.evaluation import StatisticsConfig
from lewis_core.errors import EvaluationError
from lewis_core.evaluation import descriptions, game, identification, io, recognition, vqa
from lewis_core.evaluation.records import Comparison, EvaluationName, EvaluationResult, PairedTest, Prediction
from lewis_core.evaluation.significance import holm, mcnemar_p
from lewis_core.evaluation.statistics import Measure, compare_measures
from lewis_core.records import JsonObject, load_jsonl, load_record, save_record

Key = tuple[EvaluationName, str]
Rows = Sequence[Any]
"""Predictions, or rows of the descriptions' evaluation."""
HEADLINES: Mapping[str, Mapping[str, Callable[[Rows], Measure]]] = {
    "game": {"accuracy": game.accuracy},
    "identification": {
        "ranking_accuracy": identification.ranking_accuracy,
        "accuracy_oracle": identification.oracle_accuracy,
        "accuracy_retrieval": identification.retrieval_accuracy,
    },
    "recognition": {"weighted_accuracy": recognition.weighted_accuracy, "f1": recognition.f1},
    "vqa": {"accuracy": vqa.accuracy},
    "descriptions": {
        "state_rate": descriptions.state_rate,
        "location_rate": descriptions.location_rate,
    },
}
"""What is tested of each evaluation; the first is its headline."""
MODE_OF_METRIC = {"ranking_accuracy": "ranking", "accuracy_oracle": "oracle", "accuracy_retrieval": "retrieval"}
"""Which items a number is about, where it is not all of them."""


def compare_speakers(
    baseline: list[ArtifactRef], other: list[ArtifactRef], output_dir: Path, config: StatisticsConfig
) -> JsonObject:
    """Test the headline numbers of a speaker against the baseline's.

    Args:
        baseline: The baseline's evaluations.
        other: The same evaluations of the other speaker, in any order.
        output_dir: Receives ``comparison.json``.
        config: Resamples, coverage, seed.

    Returns:
        Names, and difference and p-value by evaluation, answering model and metric.

    Raises:
        EvaluationError: If the two were not evaluated in the same way on the same items.
    """
    speaker_before, before = load_speaker(baseline)
    speaker_after, after = load_speaker(other)
    if set(before) != set(after):
        only = sorted(map(str, set(before) ^ set(after)))
        raise EvaluationError(f"{speaker_before} and {speaker_after} were not evaluated alike, only one has: {only}")
    tests = correct([test for key in before for test in paired_tests(key, before[key], after[key], config)])
    save_record(
        output_dir / "comparison.json", Comparison(baseline=speaker_before, speaker=speaker_after, tests=tuple(tests))
    )
    return {
        "baseline": speaker_before,
        "speaker": speaker_after,
        "tests": {
            "/".join(filter(None, (test.evaluation, test.answering, test.metric))): {
                "difference": test.difference,
                "p_value": test.p_value,
                "p_holm": test.p_holm,
            }
            for test in tests
        },
    }


def load_speaker(refs: Sequence[ArtifactRef]) -> tuple[str, dict[Key, Rows]]:
    """Read one speaker's evaluations.

    Raises:
        EvaluationError: If there are none, they are of several speakers, or one is there twice.
    """
    loaded: dict[Key, Rows] = {}
    speakers = set()
    for ref in refs:
        result = load_record(ref.file(io.METRICS), EvaluationResult)
        key = (result.evaluation, result.answering)
        if key in loaded:
            raise EvaluationError(f"evaluation {key} is given twice for {result.speaker}; give it once")
        speakers.add(result.speaker)
        if result.evaluation == "descriptions":
            loaded[key] = load_jsonl(ref.file(descriptions.ROWS), descriptions.DescriptionRow)
        else:
            loaded[key] = load_jsonl(ref.file(io.PREDICTIONS), Prediction)
    if len(speakers) != 1:
        raise EvaluationError(f"expected evaluations of one speaker, found those of {sorted(speakers) or 'none'}")
    return speakers.pop(), loaded


def paired_tests(key: Key, baseline: Rows, other: Rows, config: StatisticsConfig) -> list[PairedTest]:
    """Test the headline numbers of one evaluation.

    Raises:
        EvaluationError: If the items differ.
    """
    check_items(key, baseline, other)
    if key[0] == "descriptions":
        baseline, other = both_described(baseline, other)
    tests = []
    for name in HEADLINES[key[0]]:
        if (test := paired_test(key, name, baseline, other, config)) is not None:
            tests.append(test.model_copy(update=discordant(key[0], name, baseline, other)))
    return tests


def paired_test(key: Key, name: str, baseline: Rows, other: Rows, config: StatisticsConfig) -> PairedTest | None:
    """Test one headline number; ``None`` where it cannot be measured for both."""
    build = HEADLINES[key[0]][name]
    before, after = build(baseline), build(other)
    result = compare_measures(before, after, config)
    if result is None:
        return None
    return PairedTest(
        evaluation=key[0],
        answering=key[1],
        metric=name,
        n=after.n,
        concepts=len(after.names),
        **result._asdict(),
    )


def correct(tests: Sequence[PairedTest]) -> list[PairedTest]:
    """Add Holm's correction for all tests of a comparison."""
    adjusted = holm([test.p_value for test in tests])
    return [test.model_copy(update={"p_holm": p}) for test, p in zip(tests, adjusted, strict=True)]


def discordant(evaluation: str, metric: str, baseline: Rows, other: Rows) -> dict[str, Any]:
    """Count items that only one of two speakers got right, and test them; nothing for numbers that count no items."""
    if evaluation == "descriptions" or metric == "f1":
        return {}
    mode = MODE_OF_METRIC.get(metric)
    before = {p.item: p.is_correct for p in baseline if mode in {None, p.tags.get("mode")}}
    after = {p.item: p.is_correct for p in other if mode in {None, p.tags.get("mode")}}
    first = sum(right and not after[item] for item, right in before.items())
    second = sum(right and not before[item] for item, right in after.items())
    return {"only_baseline": first, "only_other": second, "p_mcnemar": mcnemar_p(first, second)}


def check_items(key: Key, baseline: Rows, other: Rows) -> None:
    """Refuse predictions that do not belong to the same questions.

    Raises:
        EvaluationError: If an item is in one list only, or was about another concept.
    """
    for rows in (baseline, other):
        if len({prediction.item for prediction in rows}) != len(rows):
            double = next(item for item, count in Counter(p.item for p in rows).items() if count > 1)
            raise EvaluationError(f"{key[0]} ({key[1] or 'no model'}): item {double!r} is there twice; evaluate again")
    before = {prediction.item: prediction.concept for prediction in baseline}
    after = {prediction.item: prediction.concept for prediction in other}
    if different := sorted(item for item in before.keys() | after.keys() if before.get(item) != after.get(item)):
        raise EvaluationError(
            f"{key[0]} ({key[1] or 'no model'}): the speakers were not asked the same; {len(different)} items of "
            f"{len(before.keys() | after.keys())} differ, e.g. {different[0]!r}; evaluate both with the same settings"
        )


def both_described(baseline: Rows, other: Rows) -> tuple[Rows, Rows]:
    """Keep the concepts that all speakers described: what is not said has no words to count."""
    silent = {row.item for row in (*baseline, *other) if row.words is None}
    return [row for row in baseline if row.item not in silent], [row for row in other if row.item not in silent]
