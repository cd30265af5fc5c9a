"""The game: who plays, who wins, and what broken listeners and silent speakers score."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from lewis_core.config.evaluation import GameEvaluationConfig, StatisticsConfig
from lewis_core.errors import EvaluationError
from lewis_core.evaluation.asking import pick
from lewis_core.evaluation.game import aggregate, build_rounds, play_rounds, read_exactly
from lewis_core.evaluation.io import build_subjects
from lewis_core.evaluation.records import EvaluationResult, Prediction
from lewis_core.records import Catalog, Database, load_jsonl, load_record
from lewis_core.seeding import stable_rng
from lewis_core.testing import FakeModel, make_catalog, make_database, publish_files

STATISTICS = StatisticsConfig(resamples=200)
CATALOG = make_catalog({"mug": 4, "bag": 4})


def number(text: str) -> int:
    """A concept's number, from a photo's path or from a description ("K03")."""
    found = re.search(r"(?:secret|K)(\d\d)", text)
    assert found
    return int(found.group(1))


def describe(catalog: Catalog = CATALOG, silent: tuple[int, ...] = ()) -> Database:
    texts = {
        c.id: None if number(c.id) in silent else f"The thing has mark K{number(c.id):02d}." for c in catalog.concepts
    }
    return make_database(catalog, texts)


def embed(catalog: Catalog) -> tuple[np.ndarray, dict[str, int]]:
    """One direction per photo: concept n lies at angle n / 10, its photos a little further."""
    photos = [photo for concept in catalog.concepts for photo in (*concept.train, *concept.test)]
    angles = [number(photo.path) / 10 + index % 3 / 100 for index, photo in enumerate(photos)]
    matrix = np.array([[math.cos(angle), math.sin(angle)] for angle in angles], dtype=np.float32)
    return matrix, {photo.sha256: row for row, photo in enumerate(photos)}


def rounds(database: Database, catalog: Catalog = CATALOG, **settings: int):
    config = GameEvaluationConfig(**{"num_candidates": 3, **settings})
    return build_rounds(build_subjects(database, catalog), *embed(catalog), config)


def play(database: Database, says_yes, catalog: Catalog = CATALOG, **settings: int) -> list[Prediction]:
    return play_rounds(rounds(database, catalog, **settings), FakeModel(says_yes=says_yes))


def values(predictions: list[Prediction]) -> dict[str, float | None]:
    return {metric.name: metric.value for metric in aggregate(predictions, STATISTICS)}


def knows(image: str, text: str) -> float:
    return 0.9 if number(image) == number(text) else 0.2


def test_candidates_are_another_view_and_the_nearest_look_alikes() -> None:
    played = rounds(describe())
    assert len(played) == 8 * 2  # two rounds for each of eight concepts
    for round_ in played:
        target = round_.candidates[round_.target_index]
        assert target.path.startswith("test/") and target.sha256 != round_.subject.entry.reference.sha256
        assert round_.candidate_concepts[round_.target_index] == round_.subject.id
        assert len(set(round_.candidate_concepts)) == 3
        assert {c.partition("/")[0] for c in round_.candidate_concepts} == {round_.subject.concept.category}
    # mugs are numbers 0 to 3 at angles 0, .1, .2, .3: the two nearest to 0 are 1 and 2, to 3 they are 2 and 1
    chosen = {number(r.subject.id): {number(c) for c in r.candidate_concepts} - {number(r.subject.id)} for r in played}
    assert chosen[0] == {1, 2}
    assert chosen[3] == {1, 2}
    assert {r.candidates[r.target_index].path for r in played if number(r.subject.id) == 0} == {
        "test/cat-mug/secret00/0.jpg",
        "test/cat-mug/secret00/1.jpg",
    }


def test_who_plays_does_not_depend_on_the_speaker() -> None:
    other = make_database(CATALOG, {c.id: "It is red." for c in CATALOG.concepts}, speaker="trained")
    assert [r.item for r in rounds(describe())] == [r.item for r in rounds(other)]
    assert [r.candidates for r in rounds(describe())] == [r.candidates for r in rounds(other)]
    assert [r.item for r in rounds(describe())] != [r.item for r in rounds(describe(), seed=1)]


def test_a_perfect_listener_wins_everything() -> None:
    found = values(play(describe(), knows))
    assert found["accuracy"] == found["strict_accuracy"] == 1
    assert found["target_yes_probability"] == pytest.approx(0.9)
    # odds: target 9, each distractor .25; 9 / (9 + .25 + .25)
    assert found["posterior"] == pytest.approx(9 / 9.5)
    assert found["captured_mass"] == 1


def test_a_listener_that_always_says_yes_scores_nothing() -> None:
    found = values(play(describe(), lambda image, text: 0.9))
    assert found["accuracy"] == 0  # ties are against the speaker
    assert found["strict_accuracy"] == 0
    assert found["posterior"] == pytest.approx(1 / 3)


def test_a_listener_that_guesses_scores_chance() -> None:
    catalog = make_catalog({"mug": 150, "bag": 150}, name="c")
    texts = {concept.id: f"It is thing {concept.id[-4:]}." for concept in catalog.concepts}

    def guess(image: str, text: str) -> float:
        return float(stable_rng(0, image, text).uniform(0.01, 0.99))

    matrix = np.array([stable_rng(1, i).normal(size=4) for i in range(900)], dtype=np.float32)
    photos = [photo for concept in catalog.concepts for photo in (*concept.train, *concept.test)]
    rows = {photo.sha256: row for row, photo in enumerate(photos)}
    config = GameEvaluationConfig(num_candidates=4)
    played = build_rounds(build_subjects(make_database(catalog, texts), catalog), matrix, rows, config)
    predictions = play_rounds(played, FakeModel(says_yes=guess))
    assert len(predictions) == 600
    # one in four; standard error √(.25 · .75 / 600) = .018
    assert values(predictions)["accuracy"] == pytest.approx(0.25, abs=0.055)
    positions = [sum(p.expected == index for p in predictions) / 600 for index in range(4)]
    assert positions == pytest.approx([0.25] * 4, abs=0.055)


def test_silence_is_counted_apart_and_wins_nothing() -> None:
    predictions = play(describe(silent=(0, 1)), knows)
    failed = [p for p in predictions if p.error is not None]
    assert len(failed) == 4 and all("no description: expected <coarse>" in str(p.error) for p in failed)
    assert all(p.answered is None and p.probabilities == () for p in failed)
    found = values(predictions)
    assert found["accuracy"] == pytest.approx(12 / 16)
    assert found["accuracy_described"] == 1
    assert found["strict_accuracy"] == pytest.approx(12 / 16)


def test_all_silent_is_zero_and_what_was_not_measured_is_missing() -> None:
    found = values(play(describe(silent=tuple(range(8))), knows))
    assert found["accuracy"] == 0
    assert found["accuracy_described"] is None
    assert found["posterior"] is None


def test_strict_needs_every_answer_right() -> None:
    # the target is best (.9), but a distractor is a yes as well (.6)
    found = values(play(describe(), lambda image, text: 0.9 if number(image) == number(text) else 0.6))
    assert (found["accuracy"], found["strict_accuracy"]) == (1, 0)


def test_an_exact_reader_cannot_be_charmed() -> None:
    catalog = Catalog(
        concepts=tuple(c.model_copy(update={"category": "mug"}) for c in make_catalog({"mug": 3}).concepts)
    )
    colors = ("red", "green", "blue")
    truth = {"category": "mug", "pattern": "plain", "material": "wood", "shape": "slim", "logo": "none", "part": "red"}
    facts = {
        photo.path: {**truth, "color": colors[number(c.id)], "pose": "upright", "state": "empty", "location": "snow"}
        for c in catalog.concepts
        for photo in c.test
    }
    # 0 tells its color; 1 says what fits all; 2 says nothing that the language knows
    texts = dict(zip((c.id for c in catalog.concepts), ("It is a red mug.", "It is plain.", "Trust me."), strict=True))
    played = rounds(make_database(catalog, texts), catalog)
    charmed = play_rounds(played, FakeModel(says_yes=lambda image, text: 0.9 if is_right(image, text, texts) else 0.1))
    read = [read_exactly(round_, prediction, facts) for round_, prediction in zip(played, charmed, strict=True)]
    found = values(read)
    assert found["accuracy"] == 1
    assert found["exact_reader_accuracy"] == pytest.approx(1 / 3)  # ties are against the speaker


def is_right(image: str, text: str, texts: dict[str, str]) -> bool:
    return any(concept.endswith(f"{number(image):02d}") and said in text for concept, said in texts.items())


@pytest.mark.parametrize(
    ("scores", "expected", "answered"),
    [
        pytest.param([1.0, 2.0, 0.5], 1, 1, id="best"),
        pytest.param([2.0, 2.0, 0.5], 1, 0, id="tie-is-a-miss"),
        pytest.param([2.0, 2.0, 0.5], 0, 1, id="tie-is-a-miss-in-first-place"),
        pytest.param([1.0, 1.0, 1.0], 2, 0, id="all-tied"),
        pytest.param([3.0, 1.0], None, 0, id="truth-not-offered"),
    ],
)
def test_ties_are_against_the_speaker(scores: list[float], expected: int | None, answered: int) -> None:
    assert pick(scores, expected) == answered


def test_a_concept_without_test_photos_plays_with_its_other_training_photos() -> None:
    only_train = [
        concept.model_copy(update={"train": (*concept.train, *concept.test), "test": ()})
        for concept in CATALOG.concepts
    ]
    catalog = Catalog(concepts=tuple(only_train))
    database = describe(catalog)
    for round_ in rounds(database, catalog):
        assert round_.subject.entry.reference not in round_.candidates


def test_a_copy_of_the_reference_is_no_target() -> None:
    first, *rest = CATALOG.concepts
    copied = first.test[0].model_copy(update={"sha256": first.train[0].sha256})
    catalog = Catalog(concepts=(first.model_copy(update={"test": (copied, first.test[1])}), *rest))
    targets = [r.candidates[r.target_index] for r in rounds(describe(catalog), catalog) if r.subject.id == first.id]
    assert targets == [first.test[1]]


def test_nothing_to_play_is_an_error() -> None:
    alone = make_catalog({"mug": 1, "bag": 1})
    with pytest.raises(EvaluationError, match="no game can be played"):
        rounds(describe(alone), alone)
    no_photo = make_catalog({"mug": 2}, num_test=0)
    with pytest.raises(EvaluationError, match="nothing to ask"):
        rounds(describe(no_photo), no_photo)
    with pytest.raises(EvaluationError, match="has no embedding"):
        build_rounds(build_subjects(describe(), CATALOG), embed(CATALOG)[0], {}, GameEvaluationConfig())
    with pytest.raises(EvaluationError, match="which the catalog does not hold"):
        build_subjects(describe(), make_catalog({"cup": 2}))


def test_the_stage_writes_what_reports_and_comparisons_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import nullcontext

    from lewis_core.config.base import ModelRef
    from lewis_core.evaluation import asking, game
    from lewis_core.reporting import NullReporter
    from lewis_core.retrieval.vectors import save_vectors

    matrix, rows = embed(CATALOG)
    save_vectors(tmp_path / "embeddings.safetensors", tmp_path / "images.json", matrix, list(rows))
    database = publish_files(tmp_path, "describe-concepts", {"database.json": describe().model_dump_json()})
    catalog = publish_files(tmp_path, "build-catalog", {"catalog.json": CATALOG.model_dump_json()})
    embeddings = database.model_copy(update={"path": tmp_path})
    monkeypatch.setattr(asking, "connect", lambda url, work_dir: nullcontext(FakeModel(says_yes=knows)))
    summary = game.play_games(
        database, catalog, embeddings, "independent", ModelRef(path="none"), tmp_path,
        GameEvaluationConfig(num_candidates=3), STATISTICS, "http://nobody", tmp_path, NullReporter(),
    )  # fmt: skip
    result = load_record(tmp_path / "metrics.json", EvaluationResult)
    predictions = load_jsonl(tmp_path / "predictions.jsonl", Prediction)
    assert (result.evaluation, result.speaker, result.answering) == ("game", "base", "independent")
    assert (result.concepts, result.failed, result.invalid, len(predictions)) == (8, 0, 0, 16)
    assert summary["metrics"]["accuracy"] == result.value("accuracy") == 1
    assert "chance 0.33" in result.metrics[0].note
    assert result.metrics == aggregate(predictions, STATISTICS)  # they follow from the predictions on disk alone


def shared_picture(catalog: Catalog) -> Catalog:
    """The first test photo of concept 1 is a copy of the first test photo of concept 0."""
    first, second, *others = sorted(catalog.concepts, key=lambda c: number(c.id))
    copy = second.test[0].model_copy(update={"sha256": first.test[0].sha256})
    second = second.model_copy(update={"test": (copy, *second.test[1:])})
    return catalog.model_copy(update={"concepts": tuple(sorted((first, second, *others), key=lambda c: c.id))})


def test_a_picture_that_the_concept_has_as_well_is_no_distractor() -> None:
    shared = shared_picture(CATALOG).concept("cat-mug/secret00").test[0].sha256
    matrix, rows = embed(CATALOG)
    subjects = build_subjects(describe(shared_picture(CATALOG)), shared_picture(CATALOG))
    played = build_rounds(subjects, matrix, rows, GameEvaluationConfig(num_candidates=3))
    for round_ in played:
        digests = [photo.sha256 for photo in round_.candidates]
        if number(round_.subject.id) in (0, 1):
            assert digests.count(shared) == (digests[round_.target_index] == shared)
    # concept 1 is still the nearest look-alike of 0, with its other photo
    own = next(r for r in played if number(r.subject.id) == 0)
    assert {c.path for c in own.candidates if "secret01" in c.path} == {"test/cat-mug/secret01/1.jpg"}


def test_concepts_that_have_the_same_pictures_cannot_be_told_apart() -> None:
    catalog = make_catalog({"mug": 2}, num_test=1)
    with pytest.raises(EvaluationError, match="no game can be played"):
        rounds(describe(shared_picture(catalog)), shared_picture(catalog))
