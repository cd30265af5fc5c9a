"""Questions: what is put, what counts, and what broken models score."""

import re
from pathlib import Path

import pytest

from lewis_core.config.evaluation import StatisticsConfig, VqaConfig
from lewis_core.data.questions import read_questions
from lewis_core.errors import EvaluationError
from lewis_core.evaluation.io import build_subjects
from lewis_core.evaluation.records import Prediction
from lewis_core.evaluation.vqa import aggregate, answer_questions, build_questions, load_questions, split_arms
from lewis_core.listener.schemas import Question
from lewis_core.prompts import CONCISE
from lewis_core.records import Database, VqaItem
from lewis_core.testing import FakeModel, make_catalog, make_database, publish_files

STATISTICS = StatisticsConfig(resamples=200)
CATALOG = make_catalog({"mug": 30, "bag": 30})
COLORS = ("red", "green", "blue", "pink", "white")


def color(concept: str) -> str:
    return COLORS[int(concept[-2:]) % 5]


def describe(silent: tuple[int, ...] = ()) -> Database:
    return make_database(
        CATALOG, {c.id: None if int(c.id[-2:]) in silent else f"It is {color(c.id)}." for c in CATALOG.concepts}
    )


def items(per_concept: int = 2) -> list[VqaItem]:
    """What color is it? The right option always stands first, as in the worst published set."""
    return [
        VqaItem(
            id=f"{c.id}:{n}",
            concept=c.id,
            image=c.test[0].path if n == 0 else None,
            question=f"What color is <sks>, {n}?",
            options=(color(c.id), *(other for other in COLORS if other != color(c.id))),
            correct=0,
        )
        for c in CATALOG.concepts
        for n in range(per_concept)
    ]


def reads(image: str | None, question: Question) -> int:
    """Choose the option that the description names; B when there is none."""
    said = re.search(r"It is (\w+)\.", question.prompt)
    options = re.findall(r"([A-Z]): (\w+)", question.prompt)
    return next((index for index, (_, text) in enumerate(options) if said and text == said.group(1)), 1)


def ask(answers, database: Database | None = None, **settings) -> list[Prediction]:
    questions = build_questions(items(), build_subjects(database or describe(), CATALOG), VqaConfig(**settings))
    return answer_questions(questions, FakeModel(answers=answers), CONCISE)


def values(predictions: list[Prediction]) -> dict[str, float | None]:
    return {metric.name: metric.value for metric in aggregate(predictions, STATISTICS)}


def test_the_description_is_the_memory_and_the_blind_arm_has_none() -> None:
    found = values(ask(reads))
    assert found["accuracy"] == 1
    # 120 questions with four options, always B: chance 1/4, standard error √(.25 · .75 / 120) = .04
    assert found["control_blind_accuracy"] == pytest.approx(0.25, abs=0.12)
    assert found["invalid_rate"] == 0


def test_always_a_is_worth_nothing_although_a_was_always_right() -> None:
    found = values(ask(lambda image, question: 0))
    assert found["accuracy"] == found["control_always_a"] == pytest.approx(0.25, abs=0.12)


def test_options_are_drawn_and_shuffled_the_same_for_every_speaker() -> None:
    first = build_questions(items(), build_subjects(describe(), CATALOG), VqaConfig(num_options=3))
    other = build_questions(items(), build_subjects(describe((1, 2)), CATALOG), VqaConfig(num_options=3))
    assert [(q.options, q.expected) for q in first] == [(q.options, q.expected) for q in other]
    assert all(len(set(q.options)) == 3 and q.options[q.expected] == color(q.subject.id) for q in first)
    assert len({q.expected for q in first}) == 3


def test_the_placeholder_becomes_the_category_word() -> None:
    questions = build_questions(items(), build_subjects(describe(), CATALOG), VqaConfig(controls=False))
    prompts = [question.prompt(CONCISE) for question in questions]
    assert all("<sks>" not in prompt and "secret" not in prompt for prompt in prompts)
    assert sum("What color is my mug, 0?" in prompt for prompt in prompts) == 30


@pytest.mark.parametrize(
    ("show", "num_asked", "has_image", "has_text"),
    [
        pytest.param("description", 120, False, True, id="description"),
        pytest.param("image", 60, True, False, id="image"),
        pytest.param("both", 60, True, True, id="both"),
    ],
)
def test_what_is_shown(show: str, num_asked: int, has_image: bool, has_text: bool) -> None:
    questions = build_questions(
        items(), build_subjects(describe(), CATALOG), VqaConfig.model_validate({"show": show, "controls": False})
    )
    assert len(questions) == num_asked  # half of the questions have no photo
    assert all((question.image is not None) is has_image for question in questions)
    assert all(("It is " in question.prompt(CONCISE)) is has_text for question in questions)


def test_silence_is_wrong_where_the_description_is_the_memory() -> None:
    silent = describe(silent=(0, 1, 2))
    predictions = ask(reads, silent)
    put, blind = split_arms(predictions)
    assert sum(p.error is not None for p in put) == 3 * 2
    assert all(p.error is None for p in blind)
    found = values(predictions)
    assert found["accuracy"] == pytest.approx(114 / 120)
    assert found["accuracy_described"] == 1
    assert all(p.error is None for p in ask(reads, silent, show="image"))


def test_fewer_questions_on_request() -> None:
    questions = build_questions(
        items(5), build_subjects(describe(), CATALOG), VqaConfig(questions_per_concept=2, controls=False)
    )
    assert len(questions) == 60 * 2
    assert len({question.item.id for question in questions}) == 120


def test_missing_questions_are_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    catalog = publish_files(tmp_path, "build-catalog", {"catalog.json": "{}"})
    with pytest.raises(EvaluationError, match=r"visual-qa\.json"):
        load_questions(catalog)
    subjects = build_subjects(describe(), CATALOG)
    with pytest.raises(EvaluationError, match="none of 0 questions"):
        build_questions([], subjects, VqaConfig())
    with pytest.raises(EvaluationError, match="with a photo each"):
        build_questions([item for item in items() if not item.image], subjects, VqaConfig(show="image"))
    broken = items()[0].model_copy(update={"correct": 9})
    with pytest.raises(EvaluationError, match="correct = 9"):
        build_questions([broken], subjects, VqaConfig())


def test_questions_without_photos_as_rap_publishes_them() -> None:
    entry = {"question": "What is the colour of sks's lid?", "option": {"A": "Red", "B": "Blue"}, "correct_answer": "A"}
    first = CATALOG.concepts[0]
    asked, set_aside = read_questions({first.name: {"0": entry, "1": entry}}, "text-only-qa.json", CATALOG)
    assert set_aside == []
    assert [(item.image, item.options, item.correct) for item in asked] == [(None, ("Red", "Blue"), 0)] * 2
    assert len({item.id for item in asked}) == 2
    assert asked[0].question == "What is the colour of <sks>'s lid?"
    questions = build_questions(asked, build_subjects(describe(), CATALOG), VqaConfig(controls=("text-only",)))
    # A is right in the whole file; shuffled, "always A" is worth a guess
    assert {question.options.index("Red") for question in questions} == {question.expected for question in questions}
    assert all(question.image is None for question in questions)
