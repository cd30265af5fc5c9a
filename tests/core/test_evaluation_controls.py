"""Control arms: what is left out of each, who answers it, and what it scores by hand."""

import math
import re

import numpy as np
import pytest

from lewis_core.config.evaluation import IdentificationConfig, RecognitionConfig, StatisticsConfig, VqaConfig
from lewis_core.evaluation import identification, recognition, vqa
from lewis_core.evaluation.controls import always_a, draw_others, majority_position, majority_text
from lewis_core.evaluation.io import build_subjects
from lewis_core.evaluation.options import Index
from lewis_core.evaluation.records import Prediction
from lewis_core.evaluation.statistics import point
from lewis_core.prompts import CONCISE
from lewis_core.records import VqaItem
from lewis_core.testing import FakeModel, make_catalog, make_database

STATISTICS = StatisticsConfig(resamples=100)
CATALOG = make_catalog({"mug": 6, "bag": 6})
TEXTS: dict[str, str | None] = {c.id: f"The mark is K{c.id[-2:]}." for c in CATALOG.concepts}
SUBJECTS = build_subjects(make_database(CATALOG, TEXTS), CATALOG)
ASKED = ("no-image", "no-description", "wrong-description")


class Recorder(FakeModel):
    """Remembers the image of every prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.put: list[tuple[str | None, str]] = []

    def choose(self, items):
        """Remember, then answer."""
        self.put += [(item.image, question.prompt) for item in items for question in item.questions]
        return super().choose(items)


def index(images: float, texts: float) -> Index:
    """Concept n lies at angle n / 10; test photos are moved by ``images``, texts by ``texts`` concepts."""

    def direction(at: float) -> list[float]:
        return [math.cos(at / 10), math.sin(at / 10)]

    rows, vectors = {}, []
    for concept in CATALOG.concepts:
        for photo in (*concept.train, *concept.test):
            rows[photo.sha256] = len(vectors)
            vectors.append(direction(int(concept.id[-2:]) + (images if photo in concept.test else 0)))
    words = [direction(int(c.id[-2:]) + images + texts) for c in CATALOG.concepts]
    text_rows = {concept.id: row for row, concept in enumerate(CATALOG.concepts)}
    return Index(np.array(vectors, np.float32), rows, np.array(words, np.float32), text_rows)


def prediction(number: int, options: tuple[str, ...], expected: int | None) -> Prediction:
    return Prediction(
        item=str(number), concept=f"c{number}", category="k", options=options, expected=expected, answered=None
    )


def test_always_a_and_the_majoritys_letter_by_hand() -> None:
    items = [prediction(n, ("x", "y"), expected) for n, expected in enumerate([0, 1, 1, None])]
    assert point(always_a(items)) == pytest.approx(1 / 4)
    assert point(majority_position(items)) == pytest.approx(2 / 4)
    assert point(majority_position([])) is None


def test_the_majoritys_text_is_learnt_from_other_concepts() -> None:
    items = [prediction(0, ("Red", "blue"), 0), prediction(1, ("blue", "red"), 1), prediction(2, ("blue", "green"), 0)]
    # c0 and c1: elsewhere red is right once and blue once: a guess, ½; c2: elsewhere neither is ever right: ½
    assert point(majority_text(items)) == pytest.approx(1.5 / 3)
    # c0: elsewhere blue once, red twice: right; so for c1 and c3; c2 (blue): elsewhere blue 0, green 0: a guess
    assert point(majority_text([*items, prediction(3, ("red ", "blue"), 0)])) == pytest.approx(3.5 / 4)


def test_wrong_words_are_another_concepts_of_the_same_category_first() -> None:
    drawn = draw_others(SUBJECTS, [SUBJECTS[0], SUBJECTS[1]], 99, 0, "x")
    assert {s.id for s in drawn} == {s.id for s in SUBJECTS[2:]}
    same = [s.concept.category == SUBJECTS[0].concept.category for s in drawn]
    assert same == [True] * 4 + [False] * 6
    assert drawn[:2] == draw_others(SUBJECTS, [SUBJECTS[0], SUBJECTS[1]], 2, 0, "x")


def test_each_arm_of_identification_leaves_out_what_it_says() -> None:
    model = Recorder()
    config = IdentificationConfig(controls=ASKED, modes=("oracle",))
    found = identification.identify(SUBJECTS, index(0, 0), model, CONCISE, config)
    by_item = {p.item: p for p in found}
    assert {p.tags["mode"] for p in found} == {"ranking", "oracle", "no_image", "no_description", "wrong_description"}
    assert any(image is None and "K" in prompt for image, prompt in model.put)
    assert any(image is not None and "K" not in prompt for image, prompt in model.put)
    [place, *_] = [p for p in found if p.tags["mode"] == "oracle"]
    for mode in ("no_image", "no_description", "wrong_description"):  # the same options in the same order
        control = by_item[place.item.replace("oracle", mode)]
        assert (control.options, control.expected) == (place.options, place.expected)
    for image, prompt in model.put:
        marks = set(re.findall(r"K(\d\d)", prompt))
        if image and len(marks) == 3 and str(image)[-8:-6] not in marks:
            break
    else:
        pytest.fail("no question held other concepts' descriptions")


def test_the_retriever_alone_answers_three_arms_by_hand() -> None:
    config = IdentificationConfig(controls=("image-only", "image-and-text", "text-only"), num_options=6)
    # photos lie nearest to their own concept's reference
    found = identification.identify(SUBJECTS, index(0.2, -2), FakeModel(), CONCISE, config)
    numbers = {m.name: m for m in identification.aggregate(found, config, STATISTICS)}
    assert numbers["control_image_only"].value == 1
    # the text two places on fits best; after the last of six there is none, so it fits its own best
    assert numbers["control_text_only"].value == pytest.approx(1 / 6)
    assert numbers["control_image_and_text"].n == 24
    assert "retriever alone" in numbers["control_image_only"].note


def test_each_arm_of_recognition_leaves_out_what_it_says() -> None:
    model = Recorder()
    config = RecognitionConfig(controls=(*ASKED, "blind"), hard_negatives=1, easy_negatives=0)
    found = recognition.recognise(SUBJECTS, model, CONCISE, config)
    assert {p.tags["mode"] for p in found} == {"description", "no_image", "no_description", "wrong_description"}
    assert len(found) == 4 * 12 * 2 * 2
    pairs = recognition.build_pairs(SUBJECTS, config)
    for pair in pairs:
        asked = recognition._in_arm(pair, "wrong_description", SUBJECTS, 0)
        assert asked is not None
        assert asked.other is not None
        assert asked.other.id not in {pair.subject.id, pair.described.id}
        assert asked.other.entry.text in asked.prompt(CONCISE)
    numbers = {m.name: m.value for m in recognition.aggregate(found, STATISTICS)}
    # FakeModel says yes to everything: half right; always no would be right in half of the pairs
    for name in (
        "control_no_image",
        "control_no_description",
        "control_wrong_description",
        "control_majority_accuracy",
    ):
        assert numbers[name] == 0.5, name
    assert numbers["accuracy"] == 0.5


@pytest.mark.parametrize(
    ("arm", "shows_words", "photo"),
    [
        pytest.param("blind", False, None, id="blind"),
        pytest.param("no-image", True, None, id="no-image"),
        pytest.param("no-description", False, None, id="no-description"),
        pytest.param("image-only", False, "own", id="image-only"),
        pytest.param("image-and-text", True, "own", id="image-and-text"),
        pytest.param("text-only", True, None, id="text-only"),
    ],
)
def test_each_arm_of_the_questions_shows_what_it_says(arm: str, shows_words: bool, photo: str | None) -> None:
    concept = CATALOG.concepts[0]
    questions = [
        VqaItem(id=f"{n}", concept=concept.id, image=image, question="Is it?", options=("a", "b"), correct=0)
        for n, image in enumerate([concept.test[0].path, None])
    ]
    put = vqa.build_questions(questions, SUBJECTS, VqaConfig.model_validate({"controls": [arm]}))
    control = [question for question in put if question.mode != "description"]
    assert [question.mode for question in control] == [arm.replace("-", "_")] * 2
    assert all(("The mark is" in question.prompt(CONCISE)) is shows_words for question in control)
    own = [concept.test[0].path, concept.train[0].path] if photo else [None, None]  # a text question: the reference
    assert [question.image for question in control] == own


def test_wrong_words_in_questions_are_other_words_and_reported() -> None:
    items = [
        VqaItem(id=c.id, concept=c.id, image=None, question="Which?", options=("a", "b"), correct=0)
        for c in CATALOG.concepts
    ]
    put = vqa.build_questions(items, SUBJECTS, VqaConfig(controls=("wrong-description",)))
    for question in put[12:]:
        assert question.subject.entry.text not in question.prompt(CONCISE)
        assert "The mark is" in question.prompt(CONCISE)
    found = vqa.answer_questions(put, FakeModel(), CONCISE)
    numbers = {m.name: m.value for m in vqa.aggregate(found, STATISTICS)}
    assert numbers["control_wrong_description_accuracy"] == numbers["accuracy"] == numbers["control_always_a"]
