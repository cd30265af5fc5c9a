"""A real Prefect server: it starts, schedules, takes our deployments, finds them by their bare names.

Two dependencies broke these without any sign elsewhere: fastapi 0.155 (no server starts) and SQLAlchemy 2.1 (no
schedule ever creates a run), so they are tested and not only pinned.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tasks.processes import Process, process_scope
from tasks.services import free_port

ROOT = Path(__file__).parents[2]
FLOW = """
from prefect import flow

@flow(name="nightly")
def nightly() -> None:
    pass
"""


class Server:
    """A server process and how to ask it."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/api"
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
            "PREFECT_HOME": str(folder / "home"),
            "PREFECT_API_URL": self.url,
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "1",
            "PREFECT_SERVER_UI_API_URL": "/api",
        }
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        self.process = Process("prefect server", command, folder / "server.log", env=self.env)

    def wait_healthy(self, timeout_s: float = 90.0) -> None:
        """Return when it answers."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self.process.is_alive:
            try:
                if httpx.get(f"{self.url}/health", trust_env=False).status_code == httpx.codes.OK:
                    return
            except httpx.HTTPError:
                time.sleep(0.2)
        raise AssertionError("the server did not start:\n" + "\n".join(self.process.tail))

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Call its API; while SQLite is being written it answers 503, and is asked again as Prefect's client does."""
        deadline = time.monotonic() + 30
        answer = httpx.post(f"{self.url}{path}", json=body, trust_env=False)
        while answer.status_code == httpx.codes.SERVICE_UNAVAILABLE and time.monotonic() < deadline:
            time.sleep(0.5)
            answer = httpx.post(f"{self.url}{path}", json=body, trust_env=False)
        assert answer.status_code < 300, answer.text
        return answer.json()

    def cli(self, *words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        """Run Prefect's command line against it."""
        command = [sys.executable, "-m", "prefect", "--no-prompt", *words]
        return subprocess.run(command, env=self.env, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server, stopped at the end."""
    with process_scope():
        running = Server(tmp_path_factory.mktemp("server"))
        running.wait_healthy()
        yield running


def test_a_cron_deployment_gets_scheduled_runs(server: Server) -> None:
    flow = server.post("/flows/", {"name": "nightly"})
    schedule = {"schedule": {"cron": "0 3 * * *", "timezone": "UTC"}, "active": True}
    body = {"name": "nightly", "flow_id": flow["id"], "entrypoint": "nightly.py:nightly", "schedules": [schedule]}
    deployment = server.post("/deployments/", body)
    wanted = {
        "deployments": {"id": {"any_": [deployment["id"]]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
    }
    deadline = time.monotonic() + 30
    while len(server.post("/flow_runs/filter", wanted)) < 2 and time.monotonic() < deadline:
        time.sleep(0.5)
    runs = server.post("/flow_runs/filter", wanted)
    assert len(runs) >= 2, "the scheduler makes no runs: check the version of SQLAlchemy"


def test_all_deployments_are_taken_and_found_by_bare_name(server: Server) -> None:
    made = server.cli("work-pool", "create", "--type", "process", "lewis")
    assert made.returncode == 0, made.stdout + made.stderr
    deployed = server.cli("deploy", "--prefect-file", "deployments/prefect.yaml", "--all")
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    names = {deployment["name"] for deployment in server.post("/deployments/filter", {})}
    assert names >= {"full-pipeline", "prepare-data", "train-speaker", "describe", "evaluate"}
    started = server.cli("deployment", "run", "full-pipeline", "--start-in", "1 hour")
    assert started.returncode == 0, started.stdout + started.stderr
    runs = server.post("/flow_runs/filter", {"flows": {"name": {"any_": ["full-pipeline"]}}})
    assert [run["state"]["type"] for run in runs] == ["SCHEDULED"]
    assert runs[0]["parameters"]["config"]["run"]["name"] == "pocket"
    unknown = server.cli("deployment", "run", "full-pipelin")
    assert unknown.returncode != 0
    assert "full-pipelin" in unknown.stdout + unknown.stderr


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
