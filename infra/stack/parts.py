"""What the stack consists of."""

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from infra.stack.database import Database, find_programs
from infra.stack.processes import Part, StackError
from infra.stack.settings import ROOT, StackSettings


class Stack:
    """The parts, and what they need to know of each other.

    Args:
        settings: From the environment.

    Raises:
        StackError: If PostgreSQL is asked for and not there.
    """

    def __init__(self, settings: StackSettings) -> None:
        self.settings = settings
        programs = None if settings.database == "sqlite" else find_programs()
        if settings.database == "postgres" and programs is None:
            raise StackError(
                "LEWIS_STACK_DATABASE=postgres, but there is no initdb: install PostgreSQL's server package"
            )
        self.database = Database(settings, programs) if programs else None

    def parts(self) -> list[Part]:
        """All parts, in the order in which they start."""
        database = [self.database.part()] if self.database else []
        listener = [self._listener()] if self.settings.listener_model else []
        return [*database, self._prefect(), self._mlflow(), *listener, self._worker()]

    def client_env(self) -> dict[str, str]:
        """What a client, and so the worker and its flows, has to know."""
        return {
            "PREFECT_API_URL": self.settings.prefect_api,
            "MLFLOW_TRACKING_URI": self.settings.mlflow_url,
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
            "DO_NOT_TRACK": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PREFECT_HOME": str(self.settings.folder / "prefect"),
        }

    def _database_url(self, driver: str, name: str, sqlite: str) -> str:
        if self.database is not None:
            return self.database.url(driver, name)
        return f"{sqlite}:///{self.settings.folder / f'{name}.db'}"

    def _database_env(self) -> dict[str, str]:
        return {"PGPASSFILE": str(self.database.password_file)} if self.database else {}

    def _prefect(self) -> Part:
        port = self.settings.prefect_port
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        env = {
            **self._database_env(),
            "PREFECT_HOME": str(self.settings.folder / "prefect"),
            "PREFECT_API_DATABASE_CONNECTION_URL": self._database_url("asyncpg", "prefect", "sqlite+aiosqlite"),
            "PREFECT_API_URL": self.settings.prefect_api,
            "PREFECT_SERVER_UI_API_URL": "/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            # Slots of a limit whose holder died while the server was down would be lost for good in memory.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        }
        ready = answers(f"http://127.0.0.1:{port}/api/health")
        return Part("prefect", command, ready, f"http://127.0.0.1:{port}", port, env)

    def _mlflow(self) -> Part:
        port = self.settings.mlflow_port
        artifacts = self.settings.folder / "mlflow-artifacts"
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--workers", "1", "--artifacts-destination", artifacts.as_uri()]
        env = {
            **self._database_env(),
            "MLFLOW_BACKEND_STORE_URI": self._database_url("psycopg", "mlflow", "sqlite"),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight more processes, 2 GB, for features that are not used
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        return Part(
            "mlflow", command, answers(f"http://127.0.0.1:{port}/health"), f"http://127.0.0.1:{port}", port, env
        )

    def _listener(self) -> Part:
        port, root = self.settings.listener_port, (ROOT / self.settings.image_root.expanduser()).resolve()
        root.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "lewis_core.listener", "--model", self.settings.listener_model]
        command += ["--image-root", str(root), "--port", str(port)]
        return Part("listener", command, answers(f"http://127.0.0.1:{port}/readyz"), f"http://127.0.0.1:{port}", port)

    def _worker(self) -> Part:
        pool, name = self.settings.pool, self.worker_name
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--name", name]
        return Part(
            "worker",
            [*command, "--type", "process"],
            lambda: is_online(self.settings.prefect_api, pool, name),
            f"pool {pool}",
            env={**self.client_env(), "PREFECT_WORKER_QUERY_SECONDS": "2"},  # looks for runs as often
            keeps_orphans=True,  # runs, which can end well without it
        )

    @property
    def worker_name(self) -> str:
        """Name of this machine's worker."""
        return f"stack-{socket.gethostname()}"


def answers(url: str) -> Callable[[], bool]:
    """A check that an address answers with 200."""

    def check() -> bool:
        try:
            return httpx.get(url, timeout=5.0, trust_env=False).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    return check


def ask_prefect(api: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """Ask Prefect's API: with a body by POST, else by GET; with the password of PREFECT_API_AUTH_STRING if it is set.

    Raises:
        httpx.HTTPError: If there is no answer, or one that is an error.
    """
    user, colon, password = os.environ.get("PREFECT_API_AUTH_STRING", "").partition(":")
    auth = (user, password) if colon else None
    method = "GET" if body is None else "POST"
    with httpx.Client(auth=auth, timeout=10.0, trust_env=False) as client:
        answer = client.request(method, f"{api}{path}", json=body)
    return answer.raise_for_status().json()


def is_online(api: str, pool: str, worker: str) -> bool:
    """Whether Prefect hears a worker's heartbeat."""
    try:
        found = ask_prefect(api, f"/work_pools/{pool}/workers/filter", {})
    except httpx.HTTPError:
        return False
    return any(one["name"] == worker and one["status"] == "ONLINE" for one in found)


def env_file(stack: Stack) -> Path:
    """File to source: it points Prefect's and MLflow's clients at the stack."""
    return stack.settings.folder / "env.sh"
