"""Runs as users start them: a server, a worker, deployments; cached, cancelled, scheduled.

What is not under test is served by the store of the finished run in the same work folder.
"""

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from tests.e2e.workplace import ROOT, SETTINGS, Workplace
from tests.orchestration.live import Server, Worker, running_worker, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("deployed")]
RESUMED = "training goes on from checkpoint-"
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
    assert wait_for(lambda: not workplace.processes(), timeout_s=60), workplace.processes()
    checkpoint = in_training(workplace)
    assert checkpoint is not None, "what was learnt so far is kept"


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
    assert wait_for(lambda: any(run["state_type"] == "COMPLETED" for run in server.runs("tick")), 120)
    server.cli("deployment", "delete", "tick/tick")
