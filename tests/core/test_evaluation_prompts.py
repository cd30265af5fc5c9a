"""No evaluation lets a name, an id or a path into a prompt, and none asks differently of two speakers."""

import numpy as np
import pytest

from lewis_core.config.evaluation import (
    DescribeConfig,
    GameEvaluationConfig,
    IdentificationConfig,
    RecognitionConfig,
    VqaConfig,
)
from lewis_core.descriptions.generate import describe
from lewis_core.evaluation import game, identification, recognition, vqa
from lewis_core.evaluation.io import build_subjects
from lewis_core.evaluation.options import Index
from lewis_core.prompts import prompt_set
from lewis_core.records import VqaItem
from lewis_core.testing import FakeModel, make_catalog, make_database

CATALOG = make_catalog({"mug": 4, "bag": 4}, name="xyzzyunmistakable")
ARMS = ("blind", "no-image", "no-description", "wrong-description", "image-only", "image-and-text", "text-only")
FORBIDDEN = ("xyzzy", "unmistakable", "cat-mug", "cat-bag", "train/", "test/", ".jpg", "sha-")


def ask_everything(prompts: str, texts: dict[str, str]) -> tuple[list[str], list[str]]:
    """Run every evaluation; returns all that the model was asked, and the ids of all items."""
    model, wording = FakeModel(writes=lambda image, prompt: "<coarse>"), prompt_set(prompts)
    subjects = build_subjects(make_database(CATALOG, texts), CATALOG)
    photos = [photo for concept in CATALOG.concepts for photo in (*concept.train, *concept.test)]
    matrix = np.eye(len(photos), 32, dtype=np.float32)
    rows = {photo.sha256: row for row, photo in enumerate(photos)}
    concepts = {concept.id: row for row, concept in enumerate(CATALOG.concepts)}
    items = [
        VqaItem(
            id=f"{c.id}:0", concept=c.id, image=c.test[0].path, question="Is <sks> red?", options=("a", "b"), correct=0
        )
        for c in CATALOG.concepts
    ]
    describe(CATALOG.concepts, "base", model, wording, DescribeConfig())
    index = Index(matrix, rows, matrix[: len(concepts)], concepts)
    questions = vqa.build_questions(items, subjects, VqaConfig(show="both", controls=ARMS))
    predictions = [
        *game.play_rounds(game.build_rounds(subjects, matrix, rows, GameEvaluationConfig()), model),
        *identification.identify(subjects, index, model, wording, IdentificationConfig(pool="all", controls=ARMS)),
        *recognition.recognise(subjects, model, wording, RecognitionConfig(controls=ARMS)),
        *vqa.answer_questions(questions, model, wording),
    ]
    return model.asked, [prediction.item for prediction in predictions]


@pytest.mark.parametrize("prompts", ["concise", "instruct"])
def test_names_ids_and_paths_never_reach_a_prompt(prompts: str) -> None:
    texts = {concept.id: f"It has mark number {number}." for number, concept in enumerate(CATALOG.concepts)}
    asked, _ = ask_everything(prompts, texts)
    kinds = ("Describe the mug", "mark number 3", "my bag", "ption", "letter")
    assert all(any(kind in text for text in asked) for kind in kinds)  # every evaluation did ask
    assert len(asked) > 100
    leaks = {(word, text) for text in asked for word in FORBIDDEN if word in text.lower()}
    assert leaks == set()


def test_two_speakers_are_asked_about_the_same_items() -> None:
    _, first = ask_everything("concise", {concept.id: "It is red." for concept in CATALOG.concepts})
    _, second = ask_everything("concise", {concept.id: f"It is {concept.id[-1]}." for concept in CATALOG.concepts})
    assert sorted(first) == sorted(second)
