"""Runs as users start them: a server, a worker, deployments; cached, cancelled, announced, scheduled.

What is not under test is served by the store of the finished run in the same work folder.
"""

import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file

from lewis_core.artifacts import ArtifactRef, ArtifactStore
from tasks.automations import ZOMBIES
from tests.e2e.workplace import ROOT, SETTINGS, Workplace
from tests.orchestration.live import Server, Worker, running_worker, wait_for

ENSURE_ZOMBIES = """
from flows.commands import FLOWS
from tasks.automations import ensure_zombie_automation

ensure_zombie_automation(list(FLOWS), within_s=60)
"""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("deployed")]
SMOKE, TRIGGERED = "full-pipeline-pocket-smoke", "reevaluate-checkpoints-when-registered"


def settings(workplace: Workplace, **training: object) -> dict[str, Any]:
    """Parameters of a run in the work folder; those of the finished run unless training is different."""
    values = tomllib.loads((ROOT / SETTINGS).read_text(encoding="utf-8"))
    values["run"]["work_dir"] = str(workplace.folder)
    values["training"] |= {"max_steps": 12, **training}
    return values


@pytest.fixture(scope="module")
def worker(server: Server, deployed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with running_worker(server, tmp_path_factory.mktemp("worker") / "worker.log") as worker:
        yield worker


def in_training(workplace: Workplace) -> Path | None:
    """The newest whole checkpoint of an unfinished training."""
    return next(iter(sorted(workplace.folder.glob("store/work/train-*/checkpoints/*/complete"))), None)


def test_a_deployment_s_run_takes_what_is_there_and_shows_it(
    server: Server, worker: Worker, workplace: Workplace, finished: dict[str, Any]
) -> None:
    config = json.dumps(settings(workplace))
    started = server.cli("deployment", "run", SMOKE, "--param", f"config={config}")
    assert started.returncode == 0, started.stdout + started.stderr
    run_id = str(server.runs(SMOKE)[-1]["id"])
    assert server.wait_final(run_id) == "COMPLETED", server.logs(run_id)
    made = server.post("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run_id]}}})
    shown = {artifact["key"]: artifact["data"] for artifact in made}
    assert {"pipeline-summary", "evaluation-metrics", "report", "mlflow-run"} <= set(shown)
    assert "Computed 0 stages" in shown["pipeline-summary"]
    client = MlflowClient(finished["mlflow_uri"])
    experiment = client.get_experiment_by_name("lewis")
    assert experiment is not None
    tracked = client.search_runs([experiment.experiment_id], f"tags.`prefect.flow_run_id` = '{run_id}'")
    assert [run.info.status for run in tracked] == ["FINISHED"]
    assert tracked[0].info.run_id in shown["mlflow-run"]
    assert f"/flow-run/{run_id})" in tracked[0].data.tags["mlflow.note.content"]


def test_cancelling_in_training_leaves_no_process(
    server: Server, worker: Worker, workplace: Workplace, finished: dict[str, Any]
) -> None:
    run_id = server.start(SMOKE, settings(workplace, max_steps=500, seed=1))
    assert wait_for(lambda: in_training(workplace)), server.logs(run_id)
    cancelled = server.cli("flow-run", "cancel", run_id)
    assert cancelled.returncode == 0, cancelled.stdout + cancelled.stderr
    assert server.wait_final(run_id) == "CANCELLED", server.logs(run_id)
    assert wait_for(lambda: not workplace.processes(), timeout_s=150), workplace.processes()
    checkpoint = in_training(workplace)
    assert checkpoint is not None, "what was learnt so far is kept"


def elsewhere(server: Server, code: str, *words: str) -> None:
    """Run code in a process that knows the server, as the end of another training would."""
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, env=server.env, cwd=ROOT, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr[-6000:]


@pytest.fixture
def triggered(server: Server, workplace: Workplace, tmp_path: Path) -> dict[str, Any]:
    """The deployment that waits for checkpoints, for this work folder instead of the pocket's."""
    content = yaml.safe_load((ROOT / "deployments/prefect.yaml").read_text(encoding="utf-8"))
    chosen = next(one for one in content["deployments"] if one["name"] == TRIGGERED)
    chosen["parameters"] = {"config": settings(workplace)}
    chosen["triggers"][0]["match"]["lewis.run"] = "pocket-smoke"
    file = tmp_path / "prefect.yaml"
    file.write_text(yaml.safe_dump({"name": "test", "deployments": [chosen]}), encoding="utf-8")
    done = server.cli("deploy", "--prefect-file", str(file), "--all")
    assert done.returncode == 0, done.stdout + done.stderr
    return server.deployment(TRIGGERED)


def train_another(workplace: Workplace) -> ArtifactRef:
    """An adapter of a training that was elsewhere: other weights, whole, with its manifest."""
    store = ArtifactStore(workplace.folder / "store")
    first = next(store.root.glob("train-speaker/*/manifest.json")).parent
    known = store.find("train-speaker", first.name)
    assert known is not None
    weights = load_file(first / "adapter/adapter_model.safetensors")
    generator = torch.Generator().manual_seed(3)
    with store.building("train-speaker", "of-another-training") as folder:
        shutil.copytree(first / "adapter", folder / "adapter")
        moved = {name: value + 0.02 * torch.randn(value.shape, generator=generator) for name, value in weights.items()}
        save_file(moved, folder / "adapter/adapter_model.safetensors")
        arguments = known.verify().arguments
        return store.publish(folder, "train-speaker", "of-another-training", arguments, "", {}, {})


def descriptions_started(workplace: Workplace, label: str) -> int:
    """How often a checkpoint was described, by all runs in the folder."""
    lines = [line for path in workplace.folder.glob("logs/events-*.jsonl") for line in path.read_text().splitlines()]
    entries = [json.loads(line) for line in lines]
    return sum(one["event"] == "start" and one.get("name") == f"describe-concepts {label}" for one in entries)


REGISTER = """
import sys
from pathlib import Path
from lewis_core.artifacts import ArtifactRef
from lewis_core.config.pipeline import TrackingConfig
from tasks.tracking import Tracker

folder, uri, adapter = sys.argv[1:]
tracker = Tracker(TrackingConfig(uri=uri), Path(folder), "elsewhere", {}, "pocket-smoke")
tracker.register_adapter(ArtifactRef.model_validate_json(adapter), None, {}, "another")
tracker.end("FINISHED")
"""
ANNOUNCE = """
import sys
from tasks.sending import announce

announce("lewis-speaker", "2", sys.argv[1], "pocket-smoke")
"""


def test_a_registered_checkpoint_is_evaluated_once(
    server: Server, worker: Worker, workplace: Workplace, finished: dict[str, Any], triggered: dict[str, Any]
) -> None:
    """Registration announces it, the announcement starts a run; told again, nothing is evaluated again."""
    adapter = train_another(workplace)
    elsewhere(server, REGISTER, str(workplace.folder), finished["mlflow_uri"], adapter.model_dump_json())
    assert wait_for(lambda: server.runs(TRIGGERED)), "the announcement started no run"
    first = str(server.runs(TRIGGERED)[0]["id"])
    assert server.wait_final(first) == "COMPLETED", server.logs(first)
    assert descriptions_started(workplace, "lewis-speaker 2") == 1
    tags = MlflowClient(finished["mlflow_uri"]).get_model_version("lewis-speaker", "2").tags
    assert {"lewis.evaluation", "lewis.game_accuracy", "lewis.independent_game_accuracy"} <= set(tags)
    elsewhere(server, ANNOUNCE, adapter.digest)
    assert wait_for(lambda: len(server.runs(TRIGGERED)) > 1), "the second announcement started no run"
    second = str(server.runs(TRIGGERED)[-1]["id"])
    assert server.wait_final(second) == "COMPLETED", server.logs(second)
    assert descriptions_started(workplace, "lewis-speaker 2") == 1
    assert len(server.runs(TRIGGERED)) == 2
    made = server.post("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [second]}}})
    board = next(json.loads(one["data"]) for one in made if one["key"] == "leaderboard")
    assert {row["checkpoint"].removesuffix(" (champion)"): row["status"] for row in board} == {
        "base": "evaluated before",
        "lewis-speaker 1": "evaluated before",
        "lewis-speaker 2": "evaluated before",
    }


def test_a_schedule_fires(server: Server, worker: Worker, tmp_path: Path) -> None:
    (tmp_path / "tick.py").write_text(
        'from prefect import flow\n\n\n@flow(name="tick")\ndef tick() -> str:\n    return "tick"\n', encoding="utf-8"
    )
    content = {
        "name": "test",
        "pull": [{"prefect.deployments.steps.set_working_directory": {"directory": str(tmp_path)}}],
        "deployments": [
            {
                "name": "tick",
                "entrypoint": "tick.py:tick",
                "work_pool": {"name": "lewis"},
                "schedules": [{"interval": 5, "active": True}],
            }
        ],
    }
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    done = server.cli("deploy", "--all", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert wait_for(lambda: any(run["state_type"] == "COMPLETED" for run in server.runs("tick")))
    server.cli("deployment", "delete", "tick/tick")


@pytest.fixture
def watched(server: Server) -> Iterator[None]:
    """The automation that finds lost runs, with the shortest silence that heartbeats of 30 s allow."""
    elsewhere(server, ENSURE_ZOMBIES)
    yield
    done = server.cli("automation", "delete", ZOMBIES)
    assert done.returncode == 0, done.stdout + done.stderr


def published(workplace: Workplace) -> dict[Path, int]:
    """When each finished artifact was written."""
    return {path: path.stat().st_mtime_ns for path in workplace.folder.glob("store/*/*/manifest.json")}


def test_a_lost_machine_s_run_is_found_and_the_next_goes_on(
    server: Server, worker: Worker, workplace: Workplace, watched: None
) -> None:
    """Kill -9 of worker and run: no process is left, the run is marked, its slot is free, training goes on."""
    known = set(workplace.folder.glob("store/work/train-*/checkpoints/*/complete"))
    parameters = settings(workplace, seed=2, max_steps=20)
    parameters["games"]["seed"] = 2
    lost = server.start(SMOKE, parameters)
    started = wait_for(lambda: set(workplace.folder.glob("store/work/train-*/checkpoints/*/complete")) - known)
    assert started, server.logs(lost)
    worker.kill()
    assert wait_for(lambda: not workplace.processes(), timeout_s=150), workplace.processes()
    before = published(workplace)
    worker.start()
    assert server.wait_final(lost, timeout_s=300) == "CRASHED"
    assert "no heartbeat for 60 s" in server.get(f"/flow_runs/{lost}")["state"]["message"]
    again = server.start(SMOKE, parameters)
    assert server.wait_final(again) == "COMPLETED", server.logs(again)
    assert published(workplace).items() >= before.items(), "finished stages were computed again"
    training = next(iter(started)).parents[2].name
    log = (workplace.folder / f"logs/train-speaker-{training.rpartition('-')[2]}.log").read_text(encoding="utf-8")
    assert "training goes on from checkpoint-" in log
    assert wait_for(lambda: not workplace.processes(), timeout_s=150), workplace.processes()
