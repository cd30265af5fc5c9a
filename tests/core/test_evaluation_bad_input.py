"""What does not belong together, or makes no sense, is refused by name."""

from pathlib import Path

import pytest

from lewis_core.config.evaluation import StatisticsConfig, VqaConfig
from lewis_core.data.questions import read_questions
from lewis_core.errors import EvaluationError
from lewis_core.evaluation import vqa
from lewis_core.evaluation.compare import compare_speakers
from lewis_core.evaluation.io import NO_DESCRIPTION, build_subjects, save_evaluation
from lewis_core.evaluation.seeds import aggregate_seeds
from lewis_core.evaluation.verdict import judge
from lewis_core.records import Catalog, Database, VqaItem
from lewis_core.testing import make_catalog, make_database, make_predictions, publish_evaluation

CATALOG = make_catalog({"mug": 3})
TEXTS: dict[str, str | None] = {concept.id: "It is red." for concept in CATALOG.concepts}
STATISTICS = StatisticsConfig(resamples=100)


def test_a_database_of_another_catalog() -> None:
    database = make_database(CATALOG, TEXTS)
    with pytest.raises(EvaluationError, match="describes 'cat-mug/secret02', which the catalog does not hold"):
        build_subjects(database, Catalog(concepts=CATALOG.concepts[:2]))
    first = CATALOG.concepts[0]
    other = first.train[0].model_copy(update={"sha256": "another picture"})
    changed = Catalog(concepts=(first.model_copy(update={"train": (other,)}), *CATALOG.concepts[1:]))
    with pytest.raises(EvaluationError, match=r"made from another catalog: train/.*/0\.jpg is no photo of"):
        build_subjects(database, changed)


def test_a_concept_that_is_described_twice() -> None:
    database = make_database(CATALOG, TEXTS)
    double = Database(speaker="base", entries=(*database.entries, database.entries[0]))
    with pytest.raises(EvaluationError, match="describes 'cat-mug/secret00' twice"):
        build_subjects(double, CATALOG)


def test_items_that_are_there_twice(tmp_path: Path) -> None:
    once = make_predictions({"k/a": True, "k/b": False})
    with pytest.raises(EvaluationError, match="ids are not unique"):
        save_evaluation(tmp_path, "game", "base", "listener", [*once, once[0]], (), STATISTICS)
    base = publish_evaluation(tmp_path, "base", once)
    twice = publish_evaluation(tmp_path, "other", [*once, once[0]])
    with pytest.raises(EvaluationError, match=r"game \(listener\): item 'item-k/a' is there twice"):
        compare_speakers([base], [twice], tmp_path, STATISTICS)
    with pytest.raises(EvaluationError, match="'item-k/a' is there twice"):
        aggregate_seeds("seeds", [base, twice], tmp_path, STATISTICS)


def test_databases_that_lack_concepts_cannot_be_compared(tmp_path: Path) -> None:
    base = publish_evaluation(tmp_path, "base", make_predictions({"k/a": True, "k/b": False}))
    less = publish_evaluation(tmp_path, "other", make_predictions({"k/a": True}))
    with pytest.raises(EvaluationError, match=r"1 items of 2 differ, e\.g\. 'item-k/b'; evaluate both with the same"):
        compare_speakers([base], [less], tmp_path, STATISTICS)


@pytest.mark.parametrize("text", ["", "   "])
def test_empty_descriptions_are_failures_with_a_reason(text: str) -> None:
    entries = make_database(CATALOG, TEXTS).entries
    empty = (
        entries[0].description.model_copy(update={"coarse": text, "detailed": text}) if entries[0].description else None
    )
    database = Database(speaker="base", entries=(entries[0].model_copy(update={"description": empty}), *entries[1:]))
    subjects = build_subjects(database, CATALOG)
    assert subjects[1].failure is None
    assert subjects[0].failure == NO_DESCRIPTION + "the speaker wrote nothing"
    failed = make_predictions({"k/a": True, "k/b": True}, error=subjects[0].failure)
    assert (
        "2 of 2 items could not be asked and count as wrong: no description" in judge("vqa", failed, [], STATISTICS)[1]
    )


def test_questions_with_one_option_are_set_aside_by_name() -> None:
    entry = {"question": "Is <sks> red?", "options": {"A": "yes"}, "correct_answer": "A"}
    read = read_questions({CATALOG.concepts[0].id: {"": entry}}, "visual-qa.json", CATALOG)
    assert read[0] == []
    assert "expected an object of two or more letters" in read[1][0].reason
    with pytest.raises(ValueError, match="options"):
        VqaItem(id="q", concept="c", image=None, question="?", options=("yes",), correct=0)
    subjects = build_subjects(make_database(CATALOG, TEXTS), CATALOG)
    wrong = VqaItem(id="q", concept=CATALOG.concepts[0].id, image=None, question="?", options=("a", "b"), correct=2)
    with pytest.raises(EvaluationError, match="question q: correct = 2, but it has 2 options"):
        vqa.build_questions([wrong], subjects, VqaConfig())
