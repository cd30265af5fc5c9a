"""Broken models get numbers at the chance level, and the result says so in words."""

import numpy as np
import pytest

from lewis_core.config.evaluation import IdentificationConfig, RecognitionConfig, StatisticsConfig
from lewis_core.evaluation import identification, recognition
from lewis_core.evaluation.io import build_subjects
from lewis_core.evaluation.options import Index
from lewis_core.evaluation.records import Prediction
from lewis_core.evaluation.verdict import compare_with_chance, constant_answer, judge
from lewis_core.prompts import CONCISE
from lewis_core.seeding import stable_rng
from lewis_core.testing import FakeModel, make_catalog, make_database

STATISTICS = StatisticsConfig(resamples=400)
CATALOG = make_catalog({"mug": 20, "bag": 20})
TEXTS: dict[str, str | None] = {c.id: f"The mark is K{c.id[-2:]}." for c in CATALOG.concepts}
SUBJECTS = build_subjects(make_database(CATALOG, TEXTS), CATALOG)


def index() -> Index:
    photos = [photo for concept in CATALOG.concepts for photo in (*concept.train, *concept.test)]
    rows = {photo.sha256: row for row, photo in enumerate(photos)}
    vectors = stable_rng(0, "index").normal(size=(len(photos), 8)).astype(np.float32)
    return Index(vectors, rows, vectors, {c.id: row for row, c in enumerate(CATALOG.concepts)})


def judged(model: FakeModel, evaluation: str) -> tuple[str, str]:
    """Verdict and warnings of a whole evaluation by a model."""
    if evaluation == "identification":
        config = IdentificationConfig(controls=False)
        found = identification.identify(SUBJECTS, index(), model, CONCISE, config)
        result = judge("identification", found, (), STATISTICS)
    else:
        items = recognition.recognise(SUBJECTS, model, CONCISE, RecognitionConfig(controls=False, hard_negatives=3))
        result = judge("recognition", items, (), STATISTICS)
    return result.verdict, "\n".join(result.warnings)


def guesses(image: str | None, question: object) -> int:
    return int(stable_rng(0, str(image), str(question)).integers(2))


def test_a_model_that_always_says_a_is_called_that() -> None:
    verdict, warnings = judged(FakeModel(answers=lambda image, question: 0), "identification")
    assert "oracle: not distinguishable from chance (0." in verdict
    assert "oracle: answers A in 100% of the items, whatever is right" in warnings
    # the listener's half cannot tell any two descriptions apart: every rank is a tie
    # none of 40 things found: the exact bound is 1 - .025^(1/40) = .088, above a chance of .05
    assert "ranking: not distinguishable from chance (0.00 against 0.05 by chance)" in verdict
    assert "ranking: all options get the same score in 100% of the items" in warnings


@pytest.mark.parametrize("answer", [0, 1])
def test_a_model_that_always_says_yes_or_no_is_called_that(answer: int) -> None:
    verdict, warnings = judged(FakeModel(answers=lambda image, question: answer), "recognition")
    assert verdict == "description: not distinguishable from chance (0.50 against 0.50 by chance)"
    assert warnings == f"description: answers {('yes', 'no')[answer]} in 100% of the items, whatever is right"


@pytest.mark.parametrize("evaluation", ["identification", "recognition"])
def test_a_model_that_guesses_is_not_told_from_chance(evaluation: str) -> None:
    model = FakeModel(lambda image, text: 0.1 + 0.8 * stable_rng(0, image, text).random(), guesses)
    verdict, warnings = judged(model, evaluation)
    for phrase in verdict.split("; "):
        assert "not distinguishable from chance" in phrase
    assert "whatever is right" not in warnings


def test_a_model_that_knows_is_better_than_chance_and_earns_no_warning() -> None:
    def knows(image: str | None, question: object) -> int:
        return 0 if f"K{str(image).split('/')[2][-2:]}." in str(question) else 1

    verdict, warnings = judged(FakeModel(answers=knows), "recognition")
    assert verdict == "description: better than chance (1.00 against 0.50 by chance)"
    assert warnings == ""


def item(number: int, expected: int | None, answered: int | None, **more: object) -> Prediction:
    fields = {
        "item": str(number), "concept": f"c{number}", "category": "k", "options": ("x", "y"), "expected": expected,
        "answered": answered, "tags": {"mode": "oracle"}, **more,
    }  # fmt: skip
    return Prediction.model_validate(fields)


def test_an_answer_is_constant_only_if_it_is_given_where_it_is_wrong_too() -> None:
    right = [item(n, 0, 0) for n in range(18)]
    assert constant_answer([*right, *(item(n, 1, 1) for n in range(2))]) is None
    assert constant_answer([*right, *(item(n, 1, 0) for n in range(2))]) == (
        "answers A in 100% of the items, whatever is right"
    )
    assert constant_answer(right) is None  # always right: no habit to be seen
    assert constant_answer([item(0, 0, None)]) is None


def test_invalid_answers_failures_and_misses_are_counted() -> None:
    items = [item(n, n % 2, None if n < 5 else n % 2) for n in range(10)]
    items.append(item(10, 0, None, error="no description: expected <coarse>"))
    found = judge("vqa", items, (), STATISTICS)
    assert found.warnings == (
        "oracle: 50% of the answers are invalid and count as wrong",
        "1 of 11 items could not be asked and count as wrong: no description",
    )
    # options that do not hold the truth cannot be guessed
    assert "0.50 against 0.25 by chance" in compare_with_chance([item(0, None, 0), item(1, 0, 0)], STATISTICS)
    assert "too few concepts to tell" in compare_with_chance([item(0, 0, 0)], STATISTICS)


def test_a_control_that_should_know_nothing_and_does_is_a_leak() -> None:
    control = [item(n, n % 2, n % 2, tags={"mode": "blind"}) for n in range(30)]
    [warning] = judge("vqa", [], control, STATISTICS).warnings
    assert warning.startswith("control arm blind: better than chance (1.00 against 0.50 by chance)")
    guessed = [item(n, n % 2, 0, tags={"mode": "blind"}) for n in range(30)]
    assert judge("vqa", [], guessed, STATISTICS).warnings == ()


def test_a_control_arm_that_gets_no_answers_says_so() -> None:
    silent = [item(n, n % 2, None if n < 27 else 0, tags={"mode": "image_only"}) for n in range(30)]
    assert judge("recognition", [], silent, STATISTICS).warnings == (
        "control arm image only: 90% of the answers are invalid and count as wrong",
    )


def counted(right: list[tuple[int, int]], options: int) -> list[Prediction]:
    """Answers about one thing after another: how many are right, of how many."""
    return [
        Prediction(
            item=f"{thing}-{number}",
            concept=f"mug/{thing}",
            category="mug",
            options=tuple(map(str, range(options))),
            expected=0,
            answered=0 if number < found else 1,
        )
        for thing, (found, asked) in enumerate(right)
        for number in range(asked)
    ]


def test_an_interval_that_ends_at_chance_does_not_leave_it_out() -> None:
    # one resample in eleven, (4/6)^6, holds only things with 1/3 right, where 1/3 - 1/3 may be rounded to 1e-17
    asked = counted([(1, 3), (1, 3), (3, 3), (3, 3), (1, 3), (1, 3)], options=3)
    assert compare_with_chance(asked, STATISTICS) == "not distinguishable from chance (0.56 against 0.33 by chance)"


def test_nothing_right_is_below_chance_only_if_there_is_enough_of_it() -> None:
    # 1 - .025^(1/3) = .71 and 1 - .025^(1/8) = .37 could have been right, against 1/2 by chance
    assert compare_with_chance(counted([(0, 2)] * 3, 2), STATISTICS).startswith("not distinguishable")
    assert compare_with_chance(counted([(0, 2)] * 8, 2), STATISTICS).startswith("worse than chance")
