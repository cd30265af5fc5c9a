"""A real Prefect server: it starts, schedules, takes our deployments, finds them by their bare names.

Two dependencies broke these without any sign elsewhere: fastapi 0.155 (no server starts) and SQLAlchemy 2.1 (no
schedule ever creates a run), so they are tested and not only pinned.
"""

import time
from pathlib import Path

import httpx
import pytest

from tests.orchestration.live import Server

ROOT = Path(__file__).parents[2]


def test_a_cron_deployment_gets_scheduled_runs(server: Server) -> None:
    flow = server.post("/flows/", {"name": "nightly"})
    schedule = {"schedule": {"cron": "0 3 * * *", "timezone": "UTC"}, "active": True}
    body = {"name": "nightly", "flow_id": flow["id"], "entrypoint": "nightly.py:nightly", "schedules": [schedule]}
    deployment = server.post("/deployments/", body)
    wanted = {
        "deployments": {"id": {"any_": [deployment["id"]]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
    }
    deadline = time.monotonic() + 120
    while len(server.post("/flow_runs/filter", wanted)) < 2 and time.monotonic() < deadline:
        time.sleep(0.5)
    runs = server.post("/flow_runs/filter", wanted)
    assert len(runs) >= 2, "the scheduler makes no runs: check the version of SQLAlchemy"


@pytest.mark.usefixtures("deployed")
def test_all_deployments_are_taken_and_found_by_bare_name(server: Server) -> None:
    names = {deployment["name"] for deployment in server.post("/deployments/filter", {})}
    assert names >= {"full-pipeline", "prepare-data", "train-speaker", "describe", "evaluate"}
    started = server.cli("deployment", "run", "full-pipeline", "--start-in", "1 hour")
    assert started.returncode == 0, started.stdout + started.stderr
    runs = server.runs("full-pipeline")
    assert [run["state"]["type"] for run in runs] == ["SCHEDULED"]
    assert runs[0]["parameters"]["config"]["run"]["name"] == "pocket"
    unknown = server.cli("deployment", "run", "full-pipelin")
    assert unknown.returncode != 0
    assert "full-pipelin" in unknown.stdout + unknown.stderr


@pytest.mark.usefixtures("deployed")
def test_the_server_refuses_unknown_settings_of_a_deployed_run(server: Server) -> None:
    found = [d for d in server.post("/deployments/filter", {}) if d["name"] == "full-pipeline"]
    config = {**found[0]["parameters"]["config"], "games": {"num_candidate": 5}}
    body = {"parameters": {"config": config}, "state": {"type": "SCHEDULED"}}
    answer = httpx.post(f"{server.url}/deployments/{found[0]['id']}/create_flow_run", json=body, trust_env=False)
    assert answer.status_code == httpx.codes.CONFLICT, answer.text
    assert "num_candidate" in answer.text


def test_the_ui_asks_the_address_it_came_from(server: Server) -> None:
    settings = httpx.get(server.url.removesuffix("/api") + "/ui-settings", trust_env=False)
    assert settings.json()["api_url"] == "/api"
