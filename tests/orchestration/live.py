"""A Prefect server and a worker as they run in production, for tests."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

from tasks.processes import Process
from tasks.services import free_port

ROOT = Path(__file__).parents[2]
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def wait_for(condition: Callable[[], Any], timeout_s: float = 240.0, every_s: float = 0.2) -> Any:
    """Ask again and again until the answer is something; returns the last answer."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(every_s)
    return found


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

    def wait_healthy(self, timeout_s: float = 180.0) -> None:
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
        deadline = time.monotonic() + 120
        answer = httpx.post(f"{self.url}{path}", json=body, trust_env=False, timeout=60)
        while answer.status_code == httpx.codes.SERVICE_UNAVAILABLE and time.monotonic() < deadline:
            time.sleep(0.5)
            answer = httpx.post(f"{self.url}{path}", json=body, trust_env=False, timeout=60)
        assert answer.status_code < 300, answer.text
        return answer.json()

    def cli(self, *words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        """Run Prefect's command line against it."""
        command = [sys.executable, "-m", "prefect", "--no-prompt", *words]
        return subprocess.run(command, env=self.env, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)

    def get(self, path: str) -> Any:
        """Read something from its API."""
        for _ in range(60):
            answer = httpx.get(f"{self.url}{path}", trust_env=False, timeout=60)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            time.sleep(0.5)
        assert answer.status_code < 300, answer.text
        return answer.json()

    def deployment(self, name: str) -> dict[str, Any]:
        """A deployment by its name."""
        return next(found for found in self.post("/deployments/filter", {}) if found["name"] == name)

    def start(self, name: str, config: dict[str, Any]) -> str:
        """Start a run of a deployment; returns its id."""
        body = {"parameters": {"config": config}, "state": {"type": "SCHEDULED"}}
        run_id: str = self.post(f"/deployments/{self.deployment(name)['id']}/create_flow_run", body)["id"]
        return run_id

    def runs(self, name: str) -> list[dict[str, Any]]:
        """Runs of a deployment, oldest first."""
        wanted = {"deployments": {"name": {"any_": [name]}}, "sort": "ID_DESC"}
        found: list[dict[str, Any]] = self.post("/flow_runs/filter", wanted)
        return sorted(found, key=lambda run: str(run["created"]))

    def state(self, run_id: str) -> str:
        """State of a run."""
        found: str = self.get(f"/flow_runs/{run_id}")["state_type"]
        return found

    def wait_final(self, run_id: str, timeout_s: float = 240.0) -> str:
        """Wait until a run is over; returns its last state."""
        wait_for(lambda: self.state(run_id) in FINAL, timeout_s)
        return self.state(run_id)

    def logs(self, run_id: str) -> str:
        """What a run logged, for messages of failed tests."""
        wanted = {"logs": {"flow_run_id": {"any_": [run_id]}}, "limit": 200, "sort": "TIMESTAMP_ASC"}
        return "\n".join(entry["message"] for entry in self.post("/logs/filter", wanted))

    def processes(self) -> list[psutil.Process]:
        """Everything that was started with this server's environment: workers, flow runs, and what these started."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("PREFECT_HOME") == self.env["PREFECT_HOME"]:
                    found.append(process)
        return [process for process in found if process.pid not in (os.getpid(), self.process.pid, self.child)]

    @property
    def child(self) -> int:
        """Process id of the server itself, below its guard."""
        children = psutil.Process(self.process.pid).children()
        return children[0].pid if children else 0


class Worker:
    """A process worker that is started and killed as a test wants it."""

    def __init__(self, server: Server, log: Path) -> None:
        self._server, self._log = server, log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, unless it runs."""
        if self.process is not None and self.process.poll() is None:
            return
        env = {
            **self._server.env,
            "PYTHONPATH": str(ROOT),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        }
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "lewis", "--type", "process"]
        with self._log.open("ab") as file:
            self.process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=file, stderr=file)

    def kill(self) -> None:
        """As the machine would end it: the worker and the processes of its runs, without a word."""
        assert self.process is not None
        runs = psutil.Process(self.process.pid).children(recursive=False)
        for process in [psutil.Process(self.process.pid), *runs]:
            process.kill()
        self.process.wait()


@contextmanager
def running_worker(server: Server, log: Path) -> Iterator[Worker]:
    """A worker, and nothing of it left afterwards."""
    worker = Worker(server, log)
    worker.start()
    try:
        yield worker
    finally:
        if worker.process is not None and worker.process.poll() is None:
            worker.process.kill()
            worker.process.wait()
        for process in server.processes():
            with suppress(psutil.Error):
                process.kill()
