"""What is measured of the texts, with every number worked out by hand."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from lewis_core.config.evaluation import StatisticsConfig
from lewis_core.errors import DataError, EvaluationError
from lewis_core.evaluation.descriptions import (
    DescriptionRow,
    aggregate,
    distinct_bigrams,
    evaluate_descriptions,
    measure_descriptions,
    plain_sentences,
    word_overlap,
)
from lewis_core.evaluation.io import load_facts
from lewis_core.evaluation.records import EvaluationResult
from lewis_core.records import Database, load_jsonl, load_record
from lewis_core.reporting import NullReporter
from lewis_core.testing import make_catalog, make_database, publish_files

STATISTICS = StatisticsConfig(resamples=200)
CATALOG = make_catalog({"mug": 3})
IDS = [concept.id for concept in CATALOG.concepts]


def describe(*texts: str | None) -> Database:
    return make_database(CATALOG, dict(zip(IDS, texts, strict=False)))


def values(database: Database, facts: dict[str, dict[str, str]] | None = None) -> dict[str, float | None]:
    metrics = aggregate(measure_descriptions(database.entries, facts), STATISTICS)
    return {metric.name: metric.value for metric in metrics}


def test_rates_by_hand() -> None:
    found = values(describe("The mug is red. It is on a table.", "It is steaming. It is red. It is red.", None))
    assert found["format_rate"] == pytest.approx(2 / 3)
    assert found["state_rate"] == pytest.approx(1 / 2)  # of those that could be read
    assert found["location_rate"] == pytest.approx(1 / 2)
    # with "A photo of a mug." before each: 3 and 4 sentences, one of them a repetition
    assert found["repeated_sentence_rate"] == pytest.approx(1 / 7)
    # 5 + 4 + 5 and 5 + 3 + 3 + 3 words
    assert found["words_mean"] == 14
    assert found["words_p95"] == 14
    assert found["duplicate_text_rate"] == 0


def test_overlap_with_others_is_that_of_the_nearest_text() -> None:
    # words of "a b c" and "b c d": 2 shared of 4
    assert word_overlap("A b c.", "b c d") == pytest.approx(2 / 4)
    assert word_overlap("", "") == 0
    # all begin with {a, photo, of, mug}; "It is red." twice, "It is blue." once: shared 6 of 8 with either
    found = values(describe("It is red.", "It is red.", "It is blue."))
    assert found["overlap_with_others"] == pytest.approx((1 + 1 + 6 / 8) / 3)
    assert found["duplicate_text_rate"] == pytest.approx(2 / 3)


def test_distinct_bigrams_by_hand() -> None:
    # it-is, is-red | it-is, is-blue: 3 different of 4; no pair crosses a full stop
    assert distinct_bigrams(["It is red. It is blue."]) == pytest.approx(3 / 4)
    assert distinct_bigrams(["Red.", ""]) is None


def test_sentences_are_compared_without_case_and_punctuation() -> None:
    assert plain_sentences("It is red!  it is RED. ... It's wool-lined.") == [
        "it is red",
        "it is red",
        "it's wool-lined",
    ]


def facts(**changes: str) -> dict[str, dict[str, str]]:
    truth = {
        "category": "mug", "concept": "x", "split": "train", "color": "red", "pattern": "blue dots",
        "material": "wood", "shape": "slim", "logo": "none",
        "part": "green", "pose": "upright", "state": "empty", "location": "snow",
    }  # fmt: skip
    return {concept.train[0].path: {**truth, **changes} for concept in CATALOG.concepts}


def pocket(text: str) -> Database:
    """The pocket world's categories are folder names."""
    database = describe(text)
    return database.model_copy(
        update={"entries": tuple(entry.model_copy(update={"category": "mug"}) for entry in database.entries)}
    )


def test_truth_is_checked_sentence_by_sentence() -> None:
    text = "The mug is red. It is a red mug. It has blue stripes. It is empty. It has no logo. Nonsense here."
    found = values(pocket(text), facts())
    # named: color (right), pattern (wrong: it has dots), logo (right); empty is a state
    assert found["identity_precision"] == pytest.approx(2 / 3)
    assert found["identity_recall"] == pytest.approx(2 / 6)
    assert found["identity_named_count"] == 2
    assert found["hallucinated_rate"] == 1
    assert found["state_rate_exact"] == found["state_rate"] == 1
    assert found["location_rate_exact"] == found["location_rate"] == 0
    assert found["repeated_fact_rate"] == pytest.approx(1 / 5)  # the color, in other words
    assert found["repeated_sentence_rate"] == 0
    assert found["unparsed_rate"] == pytest.approx(1 / 6)


def test_a_text_that_claims_nothing_has_no_precision() -> None:
    found = values(pocket("It is on the road."), facts())
    assert found["identity_precision"] is None
    assert found["identity_recall"] == 0


def test_without_truth_there_are_no_numbers_about_it() -> None:
    assert not {name for name in values(describe("It is red.")) if "identity" in name or "unparsed" in name}


def test_facts_that_do_not_cover_the_photos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"says nothing about train/cat-mug"):
        values(pocket("It is red."), {})
    assert load_facts(publish_files(tmp_path, "build-catalog", {"catalog.json": "{}"})) is None
    with pytest.raises(DataError, match="cannot be read"):
        load_facts(publish_files(tmp_path, "build-catalog", {"facts.json": "{"}))


class Recording(NullReporter):
    """Keeps the numbers."""

    def __init__(self) -> None:
        self.seen: dict[str, float] = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keep them."""
        del step
        self.seen.update(metrics)


def test_the_stage_writes_rows_and_numbers(tmp_path: Path) -> None:
    database = publish_files(tmp_path, "describe-concepts", {"database.json": pocket("It is red.").model_dump_json()})
    catalog = publish_files(tmp_path, "build-catalog", {"facts.json": json.dumps(facts())})
    reporter = Recording()
    summary = evaluate_descriptions(database, catalog, tmp_path, STATISTICS, reporter)
    result = load_record(tmp_path / "metrics.json", EvaluationResult)
    assert reporter.seen == {m.name: m.value for m in result.metrics if m.value is not None}
    [row] = load_jsonl(tmp_path / "rows.jsonl", DescriptionRow)
    assert (result.evaluation, result.speaker, result.answering) == ("descriptions", "base", "")
    assert (row.item, row.state, row.location, row.error) == (IDS[0], False, False, None)
    assert summary["metrics"]["state_rate"] == result.value("state_rate") == 0


def test_an_empty_database_is_an_error(tmp_path: Path) -> None:
    empty = publish_files(
        tmp_path, "describe-concepts", {"database.json": Database(speaker="x", entries=()).model_dump_json()}
    )
    with pytest.raises(EvaluationError, match="is empty"):
        evaluate_descriptions(empty, empty, tmp_path, STATISTICS, NullReporter())


def test_sameness_of_texts_by_hand() -> None:
    # each text begins with "A photo of a mug.": 3 of the 7 trigrams of its 9 words
    found = values(describe("Red and white stripes.", "Blue and green dots."))
    assert found["copy_overlap"] == pytest.approx(3 / 7)
    assert found["distinct_1"] == pytest.approx(11 / 18)  # a photo of mug and; red white stripes; blue green dots
    assert found["vocabulary_words"] == 11
    assert found["prompt_copy_overlap"] == 0
    assert found["self_overlap"] is not None
    assert 0 < found["self_overlap"] < 1


def test_reciting_the_prompt_is_found() -> None:
    found = values(describe("Describe the mug in the image so that it can be told apart.", "The mug is red."))
    # every trigram of the first text stands in the prompt, none of the second
    assert found["prompt_copy_overlap"] == pytest.approx((1 + 0) / 2)
