"""Prefect and MLflow on PostgreSQL, as the stack starts them: migrated, written to by several at once, read back."""

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from mlflow import MlflowClient

from infra.stack.database import ROLE, find_programs
from infra.stack.parts import Stack
from infra.stack.processes import Keeper
from infra.stack.settings import ROOT, StackSettings
from tasks.services import free_port

RUNS = 3
FLOW = """
import sys
import mlflow
from mlflow import MlflowClient
from prefect import flow, task

number = sys.argv[1]

@task
def double(value: int) -> int:
    return 2 * value

@flow(name="on-postgres")
def on_postgres(value: int) -> int:
    with mlflow.start_run(run_name=f"run-{value}") as run:
        doubled = double.map(range(value, value + 5)).result()
        mlflow.log_metrics({"sum": sum(doubled)})
        mlflow.log_dict({"doubled": doubled}, "doubled.json")
    client = MlflowClient()
    client.create_registered_model(f"model-{value}")
    client.create_model_version(f"model-{value}", run.info.artifact_uri, run.info.run_id)
    return sum(doubled)

assert on_postgres(int(number)) == 2 * sum(range(int(number), int(number) + 5))
"""


def why_not() -> str:
    """Why there can be no PostgreSQL here; empty if there can."""
    if find_programs() is None:
        return "PostgreSQL's initdb is not installed: apt-get install postgresql"
    users = {entry.pw_name for entry in pwd.getpwall()}
    if os.geteuid() == 0 and StackSettings().postgres_user not in users:
        return "PostgreSQL does not run as root, and there is no user for it"
    return ""


pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.skipif(bool(why_not()), reason=why_not())]


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """The stack's PostgreSQL and both servers, in a folder that PostgreSQL's user can enter."""
    folder = Path(tempfile.mkdtemp(prefix="lewis-postgres-"))
    folder.chmod(0o711)
    ports = {f"{name}_port": free_port() for name in ("postgres", "prefect", "mlflow")}
    made = Stack(StackSettings.model_validate({"dir": folder, "database": "postgres", "listener_model": "", **ports}))
    keeper, parts = Keeper(folder, ROOT), made.parts()[:3]
    assert made.database is not None
    try:
        made.database.prepare()
        for part in parts:
            keeper.start(part, 300)
            if part.name == "postgres":
                made.database.make_databases()
        yield made
    finally:
        for part in reversed(parts):
            keeper.stop(part)
        shutil.rmtree(folder)


def ask(stack: Stack, database: str, query: str) -> list[tuple[object, ...]]:
    """Ask PostgreSQL itself."""
    assert stack.database is not None
    where = {"host": "127.0.0.1", "user": ROLE, "dbname": database, "passfile": str(stack.database.password_file)}
    with psycopg.connect(port=stack.settings.postgres_port, **where) as connection:
        return connection.execute(query.encode()).fetchall()


def test_several_runs_at_once_are_kept_by_both(stack: Stack) -> None:
    """Each runs a flow of mapped tasks, tracks it, and registers a model."""
    env = {**os.environ, **stack.client_env(), "PYTHONPATH": str(ROOT)}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", FLOW, str(number)],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for number in range(RUNS)
    ]
    said = [run.communicate(timeout=300)[0].decode() for run in runs]
    assert [run.returncode for run in runs] == [0] * RUNS, "\n".join(said)
    states = ask(stack, "prefect", "SELECT state_type::text FROM flow_run")
    assert states == [("COMPLETED",)] * RUNS
    kept = ask(
        stack, "mlflow", "SELECT r.name, r.status, m.value FROM runs r JOIN metrics m USING (run_uuid) ORDER BY 1"
    )
    assert kept == [(f"run-{n}", "FINISHED", 2.0 * sum(range(n, n + 5))) for n in range(RUNS)]
    client = MlflowClient(stack.settings.mlflow_url)
    versions = {version.name: version for version in client.search_model_versions()}
    assert sorted(versions) == [f"model-{n}" for n in range(RUNS)]
    assert {version.status for version in versions.values()} == {"READY"}
    paths = [one.path for one in client.list_artifacts(str(versions["model-0"].run_id))]
    assert paths == ["doubled.json"]
