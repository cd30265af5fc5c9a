"""Answers that are written instead of scored; all pairs instead of some."""

import numpy as np
import pytest

from lewis_core.config.evaluation import IdentificationConfig, RecognitionConfig, StatisticsConfig, VqaConfig
from lewis_core.evaluation import identification, recognition, vqa
from lewis_core.evaluation.analyses.uncertainty import read_answers
from lewis_core.evaluation.io import build_subjects
from lewis_core.evaluation.options import Index
from lewis_core.evaluation.verdict import judge
from lewis_core.prompts import prompt_set
from lewis_core.records import VqaItem
from lewis_core.reporting import NullReporter
from lewis_core.testing import FakeModel, make_catalog, make_database

CATALOG = make_catalog({"mug": 3, "bag": 3}, num_test=2)
SUBJECTS = build_subjects(make_database(CATALOG, {c.id: f"It is {c.id[-2:]}." for c in CATALOG.concepts}), CATALOG)
WORDS, STATISTICS = prompt_set("concise"), StatisticsConfig(resamples=100)


def index() -> Index:
    photos = [photo for concept in CATALOG.concepts for photo in (*concept.train, *concept.test)]
    matrix = np.eye(len(photos), 32, dtype=np.float32)
    rows = {photo.sha256: row for row, photo in enumerate(photos)}
    return Index(matrix, rows, matrix[:6], {concept.id: row for row, concept in enumerate(CATALOG.concepts)})


def knows(image: str | None, prompt: str) -> bool:
    """Whether the prompt's only description is that of the photo: paths end in ``…/secret04/0.jpg``."""
    return image is not None and f"It is {image.split('/')[2][-2:]}." in prompt


def test_recognition_reads_what_is_written() -> None:
    model = FakeModel(writes=lambda image, prompt: "Yes, it is." if knows(image, prompt) else "no")
    found = recognition.recognise(SUBJECTS, model, WORDS, RecognitionConfig(answers="generation", controls=False))
    numbers = {m.name: m.value for m in recognition.aggregate(found, STATISTICS)}
    assert (numbers["f1"], numbers["weighted_accuracy"], numbers["invalid_rate"]) == (1, 1, 0)
    assert not {"auc", "ece", "auc_hard"} & set(numbers)  # nothing was scored, so nothing is claimed
    assert {p.response for p in found} == {"Yes, it is.", "no"}
    assert "better than chance" in judge("recognition", found, [], STATISTICS).verdict
    assert read_answers(found) == []


def test_identification_reads_letters_and_texts_and_calls_the_rest_invalid() -> None:
    def own_text(image: str | None, prompt: str) -> str:
        return f"A photo of a {image.split('/')[1][4:] if image else ''}. It is {(image or '/').split('/')[2][-2:]}."

    config = IdentificationConfig(answers="generation", controls=False)
    for writer, accuracy, invalid in ((own_text, 1.0, 0.0), (lambda image, prompt: "no idea", 0.0, 1.0)):
        found = identification.identify(SUBJECTS, index(), FakeModel(writes=writer), WORDS, config)
        numbers = {m.name: m.value for m in identification.aggregate(found, config, STATISTICS)}
        assert (numbers["accuracy_oracle"], numbers["invalid_rate_oracle"]) == (accuracy, invalid)
        assert "entropy_oracle" not in numbers


def test_questions_read_letters() -> None:
    items = [
        VqaItem(id=c.id, concept=c.id, image=None, question="Which?", options=("this", "that", "other"), correct=0)
        for c in CATALOG.concepts
    ]
    config = VqaConfig(answers="generation", controls=False)
    questions = vqa.build_questions(items, SUBJECTS, config)
    for text, expected in (("this", 1.0), ("that", 0.0), ("Answer: none of them", 0.0)):
        model = FakeModel(writes=lambda image, prompt, text=text: text)
        found = vqa.answer_questions(questions, model, WORDS, None, config)
        assert {m.name: m.value for m in vqa.aggregate(found, STATISTICS)}["accuracy"] == expected


def test_all_pairs_of_recognition() -> None:
    config = RecognitionConfig(easy_negatives="all", controls=False)
    pairs = recognition.build_pairs(SUBJECTS, config)
    assert len(pairs) == 12 * 6  # photos × descriptions
    assert len({(pair.photo.path, pair.described.id) for pair in pairs}) == len(pairs)
    assert RecognitionConfig(easy_negatives=2).easy_negatives == 2
    with pytest.raises(ValueError, match="easy_negatives"):
        RecognitionConfig(easy_negatives=-1)


def test_all_pairs_of_identification_and_their_numbers_by_hand() -> None:
    model = FakeModel(says_yes=lambda image, text: 0.8 if knows(image, text) or text.endswith("00.") else 0.2)
    ranked = identification.rank(SUBJECTS, model, IdentificationConfig(pool="all"), NullReporter())
    assert {len(p.options) for p in ranked} == {6}
    numbers = {m.name: m.value for m in identification.aggregate(ranked, IdentificationConfig(), STATISTICS)}
    # text 00 is said yes to on every photo: 12 true yes, 10 false ones among 60 negatives
    assert numbers["ranking_pair_precision"] == pytest.approx(12 / 22)
    assert numbers["ranking_pair_recall"] == 1
    assert numbers["ranking_pair_f1"] == pytest.approx(24 / 34)
    assert numbers["ranking_pair_weighted_accuracy"] == pytest.approx((1 + 50 / 60) / 2)
    assert numbers["ranking_accuracy"] == pytest.approx(2 / 12)  # a tie is against the speaker
    assert numbers["ranking_mrr"] == pytest.approx((2 * 1 + 10 * 0.5) / 12)
