"""The whole pipeline at its smallest: real Prefect server, real HTTP listener, real TRL training, real report."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import pytest
from mlflow import MlflowClient

from flows.settings import load_settings
from lewis_core.artifacts import ArtifactRef, ArtifactStore
from lewis_core.config.evaluation import Control, DescribeConfig, VqaConfig
from lewis_core.descriptions.generate import describe
from lewis_core.evaluation import game, identification, recognition, vqa
from lewis_core.evaluation.io import build_subjects
from lewis_core.evaluation.options import Index
from lewis_core.prompts import prompt_set
from lewis_core.records import Catalog, Database, load_record
from lewis_core.report.runs import open_run
from lewis_core.retrieval.vectors import load_embeddings, load_text_index
from lewis_core.testing import FakeModel
from tests.e2e.workplace import ROOT, SETTINGS, STEPS, Workplace

METRICS = {"game_accuracy", "identification", "recognition_f1", "vqa_accuracy", "state_rate", "location_rate"}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_kill_9_in_training_leaves_no_process_and_no_half_artifact(workplace: Workplace, killed: float) -> None:
    assert killed < 150  # training may finish its step and save it
    published = {path.parent.parent.name for path in workplace.folder.glob("store/*/*/manifest.json")}
    assert "build-dataset" in published
    assert "train-speaker" not in published


def test_the_same_command_goes_on_where_it_was_killed(workplace: Workplace, finished: dict[str, Any]) -> None:
    result = finished
    early = ("build-catalog", "split-concepts", "embed-images", "build-games", "build-dataset")
    assert not [name for name in result["wall_s"] if name.startswith(early)], "finished stages were computed again"
    assert {"train-speaker", "build-report"} <= set(result["wall_s"])
    log = "".join(path.read_text() for path in workplace.folder.glob("logs/train-speaker-*.log"))
    assert "training goes on from checkpoint-" in log
    assert set(result["base"]) >= METRICS
    assert set(result["trained"]) >= METRICS
    assert None not in result["trained"].values()
    report = Path(result["report"]).read_text()
    assert "<html" in report and "https://" not in report.replace("https://www.w3.org", "")
    assert {"uncertainty", "hallucination trained", "examples trained"} <= set(result["analysis_results"])
    check_tracking(result)
    assert not workplace.processes()


def check_tracking(result: dict[str, Any]) -> None:
    client = MlflowClient(result["mlflow_uri"])
    parent = client.get_run(result["mlflow_run_id"])
    assert parent.info.status == "FINISHED"
    assert parent.data.params["training.max_steps"] == "12"
    assert parent.data.metrics["trained/game_accuracy"] == result["trained"]["game_accuracy"]
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"report.html", "tables"} <= files
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    training = next(child for child in children if child.data.tags["stage"] == "train-speaker")
    steps = [point.step for point in client.get_metric_history(training.info.run_id, "reward")]
    assert steps and max(steps) == 12
    model = client.get_model_version_by_alias("lewis-speaker", "candidate")
    assert len(model.tags["dataset_digest"]) == len(model.tags["config_digest"]) == 64
    assert model.tags["lewis.name"] == model.description == "pocket-base_GRPO_lewis_pocket_seed_0_r4_a8"


def test_a_second_run_computes_nothing(workplace: Workplace, killed: float) -> None:
    started = time.monotonic()
    result = workplace.run(STEPS)
    assert set(result["wall_s"]) == {"total"}
    assert result["computed"] == 0
    assert result["cache_hits"] > 20
    assert time.monotonic() - started < 60
    assert not list(workplace.folder.glob("store/*/.building-*"))


@pytest.mark.parametrize("prompts", ["concise", "instruct"])
def test_no_prompt_of_the_full_evaluation_holds_a_name_an_id_or_a_path(
    workplace: Workplace, killed: float, prompts: str
) -> None:
    run = open_run(workplace.folder)
    catalog = load_record(run.catalog.file("catalog.json"), Catalog)
    words = {concept.name for concept in catalog.concepts} | {concept.id for concept in catalog.concepts}
    forbidden = re.compile(
        "|".join([rf"\b{re.escape(word)}\b" for word in words] + [r"\.jpg", r"\btrain/", r"\btest/"])
    )
    assert forbidden.search(f"Is {catalog.concepts[0].name} in it?") and forbidden.search("see test/mug")
    config = load_settings(ROOT / SETTINGS).evaluation
    arms = [name for name in get_args(Control) if name not in {"always-A", "majority"}]
    indexes = {manifest_of(ref)["database"]["digest"]: ref for ref in artifacts(workplace, "index-database")}
    [embeddings] = artifacts(workplace, "embed-images")
    for ref in run.databases:
        model, database = FakeModel(), load_record(ref.file("database.json"), Database)
        subjects, wording = build_subjects(database, catalog), prompt_set(prompts)
        index = Index(*load_embeddings(embeddings), *load_text_index(indexes[ref.digest]))
        describe(catalog.concepts, "anybody", model, wording, DescribeConfig())
        game.play_rounds(game.build_rounds(subjects, index.images, index.image_rows, config.game), model)
        for pool in ("category", "all"):
            identify = config.identification.model_copy(update={"controls": arms, "pool": pool})
            identification.identify(subjects, index, model, wording, identify)
        recognise = config.recognition.model_copy(update={"controls": arms, "easy_negatives": "all"})
        recognition.recognise(subjects, model, wording, recognise)
        for show in ("description", "both"):
            ask = VqaConfig(show=show, controls=tuple(arms))
            vqa.answer_questions(vqa.build_questions(vqa.load_questions(run.catalog), subjects, ask), model, wording)
        assert len(model.asked) > 200
        assert [text for text in model.asked if forbidden.search(text)] == []
        assert any(subject.entry.description.detailed in text for subject in subjects for text in model.asked)


def artifacts(workplace: Workplace, kind: str) -> list[ArtifactRef]:
    store = ArtifactStore(workplace.folder / "store")
    found = [store.find(kind, path.parent.name) for path in store.root.glob(f"{kind}/*/manifest.json")]
    return [ref for ref in found if ref is not None]


def manifest_of(ref: ArtifactRef) -> dict[str, Any]:
    return ref.verify().arguments


def test_a_finished_run_is_reported_again_by_compare(workplace: Workplace, killed: float) -> None:
    out = workplace.folder / "comparison"
    command = [sys.executable, "-m", "flows", "compare", str(workplace.folder), "--output", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["speakers"] == ["base", "trained"]
    assert result["photos_missing"] == 0
    assert "game/listener/accuracy" in result["tests"]["trained"]
