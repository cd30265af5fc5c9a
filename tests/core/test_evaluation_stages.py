"""The evaluations as stages: run through the pipeline's own door, with a fake service behind it."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from lewis_core import pipeline
from lewis_core.artifacts import ArtifactRef, ArtifactStore
from lewis_core.config.base import ModelRef
from lewis_core.config.evaluation import (
    GameEvaluationConfig,
    IdentificationConfig,
    RecognitionConfig,
    StatisticsConfig,
    VqaConfig,
)
from lewis_core.evaluation import asking
from lewis_core.evaluation.records import Comparison, EvaluationResult, Prediction
from lewis_core.listener.client import HttpModel
from lewis_core.listener.schemas import GenerateItem
from lewis_core.records import VqaItem, load_jsonl, load_record
from lewis_core.retrieval.vectors import save_vectors
from lewis_core.stages import Stage, run_stage
from lewis_core.testing import FakeModel, make_catalog, make_database, publish_files

CATALOG = make_catalog({"mug": 4, "bag": 4})
COMMON = {
    "statistics": StatisticsConfig(resamples=200),
    "answering": ModelRef(path="somebody/model", prompts="concise"),
}


def vectors(root: Path, kind: str, matrix: str, names: str, keys: list[str]) -> ArtifactRef:
    """Publish embeddings of which each key has its own direction."""
    store = ArtifactStore(root)
    with store.building(kind, "k") as folder:
        save_vectors(folder / matrix, folder / names, np.eye(len(keys), 32, dtype=np.float32), keys)
        return store.publish(folder, kind, "k", {}, "source", {}, {})


@pytest.fixture
def artifacts(tmp_path: Path) -> dict[str, ArtifactRef]:
    photos = [photo for concept in CATALOG.concepts for photo in (*concept.train, *concept.test)]
    items = [
        VqaItem(id=f"{c.id}:0", concept=c.id, image=None, question="Is it red?", options=("yes", "no"), correct=0)
        for c in CATALOG.concepts
    ]
    texts: dict[str, str | None] = {concept.id: f"It is number {concept.id[-2:]}." for concept in CATALOG.concepts}
    lines = "".join(item.model_dump_json() + "\n" for item in items)
    files = {"catalog.json": CATALOG.model_dump_json(), "questions.jsonl": lines}
    published = {
        "catalog": publish_files(tmp_path, "build-catalog", files),
        "embeddings": vectors(
            tmp_path, "embed-images", "embeddings.safetensors", "images.json", [photo.sha256 for photo in photos]
        ),
        "index": vectors(
            tmp_path, "index-database", "text_embeddings.safetensors", "concepts.json", [c.id for c in CATALOG.concepts]
        ),
    }
    for speaker in ("base", "trained"):
        database = make_database(CATALOG, texts, speaker).model_dump_json()
        published[speaker] = publish_files(tmp_path, "describe-concepts", {"database.json": database})
    return published


def evaluate(root: Path, artifacts: dict[str, ArtifactRef], speaker: str) -> dict[str, ArtifactRef]:
    """Run all evaluations of a speaker, JSON forms and all, as a flow's child processes do."""
    inputs = {"database": artifacts[speaker], "catalog": artifacts["catalog"]}
    embeddings, index = {"embeddings": artifacts["embeddings"]}, {"index": artifacts["index"]}
    plans: list[tuple[Stage, dict[str, object]]] = [
        (pipeline.PLAY_GAMES, {**embeddings, **COMMON, "answering_name": "listener", "config": GameEvaluationConfig()}),
        (pipeline.EVALUATE_IDENTIFICATION, {**embeddings, **index, **COMMON, "config": IdentificationConfig()}),
        (pipeline.EVALUATE_RECOGNITION, {**COMMON, "config": RecognitionConfig()}),
        (pipeline.EVALUATE_VQA, {**COMMON, "config": VqaConfig()}),
        (pipeline.EVALUATE_DESCRIPTIONS, {"config": StatisticsConfig(resamples=200)}),
    ]
    store, runtime = ArtifactStore(root / "store"), {"service_url": "http://nobody"}
    return {stage.name: run_stage(stage, store, {**inputs, **own}, runtime) for stage, own in plans}


def test_all_evaluations_run_as_stages_and_can_be_compared(
    tmp_path: Path, artifacts: dict[str, ArtifactRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "connect", lambda url, work_dir: nullcontext(FakeModel()))
    results = {speaker: evaluate(tmp_path, artifacts, speaker) for speaker in ("base", "trained")}
    for name, ref in results["base"].items():
        result = load_record(ref.file("metrics.json"), EvaluationResult)
        assert (result.speaker, result.concepts, result.failed) == ("base", 8, 0), name
        assert ref.summary["metrics"] == {metric.name: metric.value for metric in result.metrics}
        if name != "evaluate-descriptions":
            assert len(load_jsonl(ref.file("predictions.jsonl"), Prediction)) == ref.summary["items"]
    # control arms lie apart, so that nobody counts them among the items
    arms = {"evaluate-identification": 2 * 16, "evaluate-recognition": 16 + 16 * 3 + 16 * 3, "evaluate-vqa": 8}
    for name, count in arms.items():
        assert len(load_jsonl(results["base"][name].file("controls.jsonl"), Prediction)) == count
    compared = run_stage(
        pipeline.COMPARE_SPEAKERS,
        ArtifactStore(tmp_path / "store"),
        {
            "baseline": list(results["base"].values()),
            "other": list(results["trained"].values())[::-1],
            "config": StatisticsConfig(resamples=200),
        },
    )
    comparison = load_record(compared.file("comparison.json"), Comparison)
    assert {(test.evaluation, test.difference, test.p_value) for test in comparison.tests} == {
        (name, 0.0, 1.0) for name in ("game", "identification", "recognition", "vqa", "descriptions")
    }


def test_the_same_evaluation_gives_the_same_bytes(
    tmp_path: Path, artifacts: dict[str, ArtifactRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "connect", lambda url, work_dir: nullcontext(FakeModel()))
    first, second = (evaluate(tmp_path / name, artifacts, "base") for name in ("one", "two"))
    assert {name: ref.digest for name, ref in first.items()} == {name: ref.digest for name, ref in second.items()}


def test_the_real_client_is_what_stages_connect_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        HttpModel, "generate", lambda self, items: asked.extend(item.prompt for item in items) or [["b"]]
    )
    item = GenerateItem(image=None, prompt="a")
    for _ in range(2):  # the second time from the work folder
        with asking.connect("http://127.0.0.1:9", tmp_path) as model:
            assert model.generate([item]) == [["b"]]
    assert asked == ["a"]
