"""Recognition: pairs, counts by hand, and what broken models score."""

import math
import re
from collections import Counter

import pytest

from lewis_core.config.evaluation import RecognitionConfig, StatisticsConfig
from lewis_core.evaluation.io import build_subjects
from lewis_core.evaluation.recognition import aggregate, build_pairs, counts, recognise, split_arms
from lewis_core.evaluation.records import Prediction
from lewis_core.listener.schemas import Question
from lewis_core.prompts import CONCISE
from lewis_core.records import Database
from lewis_core.seeding import stable_rng
from lewis_core.testing import FakeModel, make_catalog, make_database

STATISTICS = StatisticsConfig(resamples=200)
CATALOG = make_catalog({"mug": 4, "bag": 4})
YES, NO = 0, 1


def number(text: str) -> int:
    found = re.search(r"(?:secret|K)(\d\d)", text)
    assert found
    return int(found.group(1))


def describe(silent: tuple[int, ...] = ()) -> Database:
    texts = {c.id: None if number(c.id) in silent else f"The mark is K{number(c.id):02d}." for c in CATALOG.concepts}
    return make_database(CATALOG, texts)


def knows(image: str | None, question: Question) -> int:
    if "K" not in question.prompt:
        return YES  # asked without a description, it sees a mug
    return YES if number(str(image)) == number(question.prompt) else NO


def ask(answers, database: Database | None = None, **settings) -> list[Prediction]:
    subjects = build_subjects(database or describe(), CATALOG)
    return recognise(subjects, FakeModel(answers=answers), CONCISE, RecognitionConfig(**settings))


def values(predictions: list[Prediction]) -> dict[str, float | None]:
    return {metric.name: metric.value for metric in aggregate(predictions, STATISTICS)}


def test_pairs_are_all_look_alikes_and_some_others() -> None:
    pairs = build_pairs(build_subjects(describe(), CATALOG), RecognitionConfig(easy_negatives=2))
    # 8 concepts × 2 photos × (1 positive + 3 hard + 2 easy)
    assert Counter(pair.kind for pair in pairs) == {"none": 16, "hard": 48, "easy": 32}
    for pair in pairs:
        same = pair.subject.concept.category == pair.described.concept.category
        assert (pair.kind == "easy") is not same
        assert (pair.kind == "none") is (pair.subject.id == pair.described.id)
    few = build_pairs(build_subjects(describe(), CATALOG), RecognitionConfig(easy_negatives=0, hard_negatives=1))
    assert Counter(pair.kind for pair in few) == {"none": 16, "hard": 16}


def test_a_perfect_model() -> None:
    found = values(ask(knows))
    for name in ("weighted_accuracy", "f1", "precision", "recall", "auc", "auc_hard", "weighted_accuracy_easy"):
        assert found[name] == 1, name
    assert found["ece"] == pytest.approx(0.1)  # says .9 when right, .1 when not
    assert found["control_no_description_hard"] == 0.5  # yes to all mugs: right on its own, wrong on look-alikes


def test_a_model_that_always_says_yes_scores_chance() -> None:
    found = values(ask(lambda image, question: YES))
    assert found["weighted_accuracy"] == found["auc"] == 0.5
    assert (found["recall"], found["negative_accuracy"]) == (1, 0)
    # 16 positives, 48 + 48 negatives: precision 16/112, F1 = 2·16 / (2·16 + 96)
    assert found["precision"] == pytest.approx(16 / 112)
    assert found["f1"] == found["control_always_yes_f1"] == pytest.approx(32 / 128)


def test_a_model_that_always_says_no_never_said_yes() -> None:
    found = values(ask(lambda image, question: NO))
    assert found["weighted_accuracy"] == 0.5
    assert (found["recall"], found["negative_accuracy"], found["f1"]) == (0, 1, 0)
    assert found["precision"] is None


def test_a_model_that_guesses_scores_chance() -> None:
    found = values(ask(lambda image, question: int(stable_rng(0, str(image), question.prompt).random() < 0.5)))
    # 16 positives and 96 negatives: standard error of the mean of both about √(.25/16 + .25/96) / 2 = .068
    assert found["weighted_accuracy"] == pytest.approx(0.5, abs=0.2)
    assert found["auc"] == pytest.approx(0.5, abs=0.2)


def test_hard_and_easy_negatives_are_told_apart() -> None:
    def sees_kinds(image: str | None, question: Question) -> int:
        return YES if str(image).split("/")[1] == f"cat-{question.prompt.split()[1].rstrip(':')}" else NO

    found = values(ask(sees_kinds, controls=False))
    assert found["weighted_accuracy_easy"] == found["auc_easy"] == 1
    assert found["weighted_accuracy_hard"] == found["auc_hard"] == 0.5
    assert found["negative_accuracy"] == 0.5  # half of the negatives are easy
    assert found["negative_accuracy_hard"] == 0


def prediction(expected: int, answered: int | None, error: str | None = None) -> Prediction:
    tags = {"mode": "description", "negatives": "none" if expected == YES else "hard"}
    return Prediction(
        item=f"{expected}{answered}{error}", concept="c", category="k", options=("yes", "no"), expected=expected,
        answered=answered, probabilities=() if error else (0.5, 0.5), tags=tags, error=error,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("expected", "answered", "error", "counted"),
    [  # TP, FP, FN, right negative, positive, negative
        pytest.param(YES, YES, None, [1, 0, 0, 0, 1, 0], id="hit"),
        pytest.param(YES, NO, None, [0, 0, 1, 0, 1, 0], id="miss"),
        pytest.param(NO, YES, None, [0, 1, 0, 0, 0, 1], id="false-alarm"),
        pytest.param(NO, NO, None, [0, 0, 0, 1, 0, 1], id="right-no"),
        pytest.param(YES, None, None, [0, 0, 1, 0, 1, 0], id="invalid-on-a-positive-is-a-miss"),
        pytest.param(NO, None, None, [0, 0, 0, 0, 0, 1], id="invalid-on-a-negative-is-wrong-but-no-yes"),
        pytest.param(YES, None, "no description: x", [0, 0, 1, 0, 1, 0], id="silent-on-a-positive"),
        pytest.param(NO, None, "no description: x", [0, 1, 0, 0, 0, 1], id="silent-on-a-negative"),
    ],
)
def test_counts(expected: int, answered: int | None, error: str | None, counted: list[int]) -> None:
    assert counts([prediction(expected, answered, error)]).tolist() == [counted]


def test_silence_wins_nothing() -> None:
    found = ask(knows, describe(silent=(0,)), easy_negatives=0)
    items, controls = split_arms(found)
    assert sum(p.error is not None for p in items) == 2 + 3 * 2  # its own two photos, and three other mugs' two
    assert all(p.error is None for p in controls)
    numbers = values(found)
    # positives 14 of 16; negatives 48 - 6 of 48
    assert numbers["weighted_accuracy"] == pytest.approx((14 / 16 + 42 / 48) / 2)
    assert numbers["f1"] == pytest.approx(28 / (28 + 6 + 2))
    assert numbers["weighted_accuracy_described"] == numbers["f1_described"] == numbers["auc"] == 1


def test_the_probability_of_yes_is_relative_to_yes_and_no() -> None:
    [first, *_] = ask(knows)
    assert first.options == ("yes", "no")
    assert first.probabilities == pytest.approx((0.9, 0.1))
    assert math.isclose(sum(first.probabilities), 1)


def test_the_control_needs_few_questions() -> None:
    model = FakeModel(answers=knows)
    recognise(build_subjects(describe(), CATALOG), model, CONCISE, RecognitionConfig(easy_negatives=1))
    bare = [text for text in model.asked if "K" not in text]
    assert len(bare) == 8 * 2 * 2  # each photo: "is my mug", "is my bag", once


def test_a_concept_that_has_the_same_picture_is_no_negative() -> None:
    mug, other = CATALOG.concept("cat-mug/secret00"), CATALOG.concept("cat-mug/secret01")
    bag = CATALOG.concept("cat-bag/secret04")
    copies = [
        concept.model_copy(
            update={
                "train": (
                    *concept.train,
                    concept.train[0].model_copy(update={"path": "train/copy.jpg", "sha256": mug.test[0].sha256}),
                )
            }
        )
        for concept in (other, bag)
    ]
    changed = {copy.id: copy for copy in copies}
    catalog = CATALOG.model_copy(update={"concepts": tuple(changed.get(c.id, c) for c in CATALOG.concepts)})
    pairs = build_pairs(build_subjects(describe(), catalog), RecognitionConfig(easy_negatives=10))
    asked = Counter(pair.photo.path for pair in pairs if pair.subject.id == mug.id)
    # 1 positive, 3 hard and 4 easy negatives; the shared picture loses one hard and one easy negative
    assert asked == {mug.test[0].path: 8 - 2, mug.test[1].path: 8}
    assert not any(pair.photo == mug.test[0] and pair.described.id in changed for pair in pairs)
