"""Bags of several sizes, two listeners, and asking again with photos: every number by hand."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lewis_core import pipeline
from lewis_core.artifacts import ArtifactRef, ArtifactStore
from lewis_core.config.analyses import BagsConfig, VisualConfig
from lewis_core.config.base import ModelRef, Runtime
from lewis_core.config.evaluation import StatisticsConfig
from lewis_core.errors import EvaluationError
from lewis_core.evaluation import asking
from lewis_core.evaluation.analyses.bags import BagResult, BagRound, CrossListener, build_bags
from lewis_core.evaluation.analyses.visual import VisualComparison, draw_picture
from lewis_core.evaluation.io import build_subjects
from lewis_core.evaluation.records import EvaluationResult, Prediction
from lewis_core.listener.schemas import Question
from lewis_core.records import load_jsonl, load_record
from lewis_core.retrieval.vectors import save_vectors
from lewis_core.stages import run_stage
from lewis_core.testing import FakeModel, make_catalog, make_database, publish_files, write_image

CATALOG = make_catalog({"mug": 3, "bag": 3}, num_test=1)
IDS = [concept.id for concept in CATALOG.concepts]
PHOTOS = [photo for concept in CATALOG.concepts for photo in (*concept.train, *concept.test)]
ROWS = {photo.sha256: row for row, photo in enumerate(PHOTOS)}
STATISTICS = StatisticsConfig(resamples=200)
TEXTS: dict[str, str | None] = {concept: f"It is number {concept[-2:]}." for concept in IDS}
CONFIG = BagsConfig(sizes=(2, 5))
REF = ModelRef(path="somebody/model", prompts="concise")


def embeddings() -> np.ndarray:
    """Photos on an arc, so that concepts with near numbers look alike."""
    angles = np.arange(len(PHOTOS)) / 20
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_bags_are_nested_and_hold_the_nearest_of_the_category_first() -> None:
    subjects = build_subjects(make_database(CATALOG, TEXTS), CATALOG)
    [small], [large] = (
        [bag for bag in build_bags(subjects, embeddings(), ROWS, BagsConfig(sizes=sizes)) if bag.subject.id == IDS[1]]
        for sizes in ((2,), (2, 5))
    )
    # 0 and 2 are of its category; 0's photo is nearer on the arc; 3 and 4 are the nearest of the other category
    shown = [photo.path.rsplit("/", 1)[0] for photo in large.distractors]
    assert shown == [f"test/{IDS[index]}" for index in (0, 2, 3, 4)]
    assert small.distractors == large.distractors[:1]
    assert small.target == large.target == CATALOG.concept(IDS[1]).test[0]
    with pytest.raises(EvaluationError, match=r"no bag of 7 can be filled.*found 6"):
        build_bags(subjects, embeddings(), ROWS, BagsConfig(sizes=(7, 9)))


def play(root: Path, monkeypatch: pytest.MonkeyPatch, name: str, model: FakeModel) -> ArtifactRef:
    store = ArtifactStore(root / "store")
    with store.building("embed-images", "k") as folder:
        names = [photo.sha256 for photo in PHOTOS]
        save_vectors(folder / "embeddings.safetensors", folder / "images.json", embeddings(), names)
        images = store.publish(folder, "embed-images", "k", {}, "source", {}, {})
    monkeypatch.setattr(asking, "connect", lambda url, work_dir: nullcontext(model))
    database = make_database(CATALOG, {**TEXTS, IDS[5]: None}).model_dump_json()
    arguments = {
        "database": publish_files(root, "describe-concepts", {"database.json": database}),
        "catalog": publish_files(root, "build-catalog", {"catalog.json": CATALOG.model_dump_json()}),
        "embeddings": images, "answering_name": name, "answering": REF, "config": CONFIG, "statistics": STATISTICS,
    }  # fmt: skip
    return run_stage(pipeline.PLAY_BAGS, store, arguments, {"service_url": "http://nobody"})


def likes_own_and(*disturbing: int) -> FakeModel:
    """A listener that knows each photo's concept, and takes some concepts for every description."""
    numbers = {IDS[index][-2:] for index in disturbing}

    def says_yes(image: str, text: str) -> float:
        number = image.rsplit("/", 2)[1][-2:]
        return 0.9 if number in numbers else 0.8 if f"number {number}." in text else 0.1

    return FakeModel(says_yes=says_yes)


def test_success_by_size_and_between_listeners_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    perfect = play(tmp_path, monkeypatch, "listener", likes_own_and())
    other = play(tmp_path, monkeypatch, "independent", likes_own_and(2))
    result = load_record(perfect.file("bags.json"), BagResult)
    # one of six concepts has no description: it is lost
    assert {m.name: m.value for m in result.metrics} == {
        "success_at_2": pytest.approx(5 / 6), "success_at_5": pytest.approx(5 / 6), "mean_rank": 1,
    }  # fmt: skip
    assert (result.rounds, result.failed) == (6, 1)
    rounds = {one.concept: one for one in load_jsonl(other.file("rounds.jsonl"), BagRound)}
    disturbed = [concept for concept in IDS[:5] if any(IDS[2] in path for path in rounds[concept].candidates[1:])]
    near = [concept for concept in IDS[:5] if IDS[2] in rounds[concept].candidates[1]]
    assert (len(near), len(disturbed)) == (0, 4)  # concept 2 is nobody's nearest, and in all great bags but its own
    values = {m.name: m.value for m in load_record(other.file("bags.json"), BagResult).metrics}
    assert values["success_at_2"] == pytest.approx(5 / 6)
    assert values["success_at_5"] == pytest.approx(1 / 6)
    assert values["mean_rank"] == pytest.approx((1 + 4 * 2) / 5)
    arguments = {"listener": perfect, "other": other, "statistics": STATISTICS}
    crossed = run_stage(pipeline.COMPARE_LISTENERS, ArtifactStore(tmp_path / "store"), arguments)
    found = load_record(crossed.file("cross_listener.json"), CrossListener)
    assert [(gap.size, gap.gap) for gap in found.gaps] == [(2, 0), (5, pytest.approx(4 / 6))]
    assert [gap.agreement for gap in found.gaps] == [1, pytest.approx(2 / 6)]
    assert found.gaps[1].p_value == pytest.approx(2 / 2**4)  # four concepts differ, all in one direction


def test_ties_are_lost_and_sizes_are_checked() -> None:
    tied = BagRound(item="i", concept="c", candidates=("a", "b", "c"), scores=(1.0, 0.5, 1.0))
    assert (tied.is_found(2), tied.is_found(3)) == (True, False)
    for sizes in ((), (1, 2), (3, 2), (2, 2), (2, 65)):
        with pytest.raises(ValueError, match="growing numbers from 2 to 64"):
            BagsConfig(sizes=sizes)


def identification(root: Path) -> ArtifactRef:
    def answer(index: int, options: tuple[int, ...], answered: int | None, mode: str = "oracle") -> Prediction:
        concept = CATALOG.concept(IDS[index])
        return Prediction(
            item=f"{mode}:{concept.id}", concept=concept.id, category=concept.category, image=concept.test[0].path,
            options=tuple(IDS[option] for option in options), expected=options.index(index), answered=answered,
            tags={"mode": mode},
        )  # fmt: skip

    answers = [
        answer(0, (1, 0), 0), answer(1, (1, 2), 1), answer(2, (2, 0), 1), answer(3, (3, 4), 0), answer(4, (3, 4), 1),
        answer(5, (3, 5), None), answer(0, (1, 0), 0, "retrieval"),
    ]  # fmt: skip
    result = EvaluationResult(evaluation="identification", speaker="base", answering="listener", metrics=())
    files = {"metrics.json": result.model_dump_json()}
    files["predictions.jsonl"] = "".join(one.model_dump_json() + "\n" for one in answers)
    return publish_files(root, "evaluate-identification", files)


def test_asking_again_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, photo in enumerate(PHOTOS):
        if photo != CATALOG.concept(IDS[2]).train[0]:  # a reference photo that is missing
            write_image(tmp_path / "photos" / photo.path, number)
    prompts = []

    def answers(image: str | None, question: Question) -> int:
        prompts.append(question.prompt)
        with Image.open(tmp_path / "store" / "open" / str(image)) as picture:
            assert picture.height == 2 * 56 + 8
        return 1

    def open_model(ref: ModelRef, runtime: Runtime, root: Path) -> FakeModel:
        (tmp_path / "store" / "open").symlink_to(root)
        return FakeModel(answers=answers)

    monkeypatch.setattr("lewis_core.models.vlm.open_model", open_model)
    database = make_database(CATALOG, TEXTS).model_dump_json()
    arguments = {
        "identification": identification(tmp_path), "answering": REF, "config": VisualConfig(height=56),
        "database": publish_files(tmp_path, "describe-concepts", {"database.json": database}),
    }  # fmt: skip
    runtime = {"data_root": tmp_path / "photos", "runtime": Runtime(device="cpu")}
    ref = run_stage(pipeline.COMPARE_VISUALLY, ArtifactStore(tmp_path / "store"), arguments, runtime)
    found = load_record(ref.file("visual_comparison.json"), VisualComparison)
    # wrong before: 0, 1 and 2; the photos' answer is the second letter: 0 becomes right, 1 and 2 need a missing photo
    assert (found.wrong_before, found.asked, found.changed_to_correct, found.failed) == (3, 3, 1, 2)
    assert (found.changed, found.changed_to_wrong, found.stayed_wrong) == (1, 0, 0)
    assert found.accuracy_visual == pytest.approx(1 / 3)
    # right before: 3 (first letter, lost now) and 4 (second letter, kept)
    assert (found.control_asked, found.control_stayed_correct, found.control_accuracy) == (2, 1, 0.5)
    assert "No such file" in str(found.items[1].error)
    assert not any("secret" in prompt for prompt in prompts)
    assert "lettered A, B from left to right" in prompts[0]
    with pytest.raises(EvaluationError, match="expected the identification from trained's"):
        other = publish_files(
            tmp_path, "describe-concepts", {"database.json": make_database(CATALOG, TEXTS, "trained").model_dump_json()}
        )
        run_stage(
            pipeline.COMPARE_VISUALLY, ArtifactStore(tmp_path / "store"), {**arguments, "database": other}, runtime
        )


def test_the_picture_holds_every_photo_in_order(tmp_path: Path) -> None:
    sizes_and_colors = {"q": ((40, 20), "white"), "a": ((20, 40), "red"), "b": ((40, 20), "blue")}
    for name, (size, color) in sizes_and_colors.items():
        Image.new("RGB", size, color).save(tmp_path / f"{name}.png")
    picture = draw_picture(tmp_path / "q.png", [tmp_path / "a.png", tmp_path / "b.png"], 100)
    assert picture.size == (50 + 8 + 200, 208)
    assert picture.getpixel((25, 180)) == (255, 0, 0)
    assert picture.getpixel((200, 180)) == (0, 0, 255)
    assert picture.getpixel((1, 109)) == (0, 0, 0)  # the letter's badge
