"""Fixtures for all tests: a clean environment, no network beyond this machine, one Prefect server where asked for."""

import os
import tempfile

# Before prefect is imported: its database and results must not be the user's.
for _name in [name for name in os.environ if name.startswith(("PREFECT_", "MLFLOW_", "HF_", "LEWIS_"))]:
    del os.environ[_name]
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="lewis-prefect-")
os.environ["PREFECT_RESULTS_LOCAL_STORAGE_PATH"] = os.environ["PREFECT_HOME"] + "/storage"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # one of several: each has about one processor
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil  # noqa: E402
import sys  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

import pytest  # noqa: E402
import pytest_socket  # noqa: E402

import flows  # noqa: E402, F401 - sets the quiet, offline environment

STARTS_PROCESSES = ("e2e", "orchestration", "service")
LONGEST_FIRST = ("e2e", "orchestration", "benchmarks", "service", "core")
"""Folders in the order in which they run: at the end nobody shall wait for a long file that came last."""
TOGETHER = ("tests/e2e/test_smoke.py", "tests/e2e/test_workers.py", "tests/orchestration/test_server.py")
"""Files that share fixtures which take long: a finished pipeline, a server. They run in one process."""

if TYPE_CHECKING:
    from tests.orchestration.live import Server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first. Tests of whole processes get a second try; pytest lists each (``RERUN``): it is a defect."""
    order = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.parent.name, len(order)))
    for item in items:
        if item.get_closest_marker("slow") or item.path.parent.name in STARTS_PROCESSES:
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several processes (``-n``): each takes the next file, as they are ordered above."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        """Tests of a file, or of files that belong together, run in one process, one after the other."""

        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            if file.startswith("tests/gpu/"):
                return "gpu"
            return "together" if file in TOGETHER else file

    config.option.loadscopereorder = False
    return ByFile(config, log)


def pytest_runtest_setup() -> None:
    """Block the network, but for this machine itself. A flow that ended in this process is no matter of this test."""
    pytest_socket.socket_allow_hosts(["127.0.0.1", "localhost", "::1"], allow_unix_socket=True)
    if (processes := sys.modules.get("tasks.processes")) and len(processes._scopes) == 1:
        processes._scopes[0] = processes.Scope()


def pytest_unconfigure() -> None:
    """Remove the Prefect folder of this session."""
    shutil.rmtree(os.environ["PREFECT_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A Prefect server for the whole session, without heartbeat threads that would slow every flow by a second."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    quiet = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
    with prefect_test_harness(server_startup_timeout=120), temporary_settings(quiet):
        yield


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Server"]:
    """A real server in a process of its own, stopped at the end."""
    from tasks.processes import process_scope
    from tests.orchestration.live import Server

    with process_scope():
        running = Server(tmp_path_factory.mktemp("server"))
        running.wait_healthy()
        yield running


@pytest.fixture(scope="session")
def deployed(server: "Server") -> None:
    """The work pool and all deployments, by Prefect's own command line."""
    made = server.cli("work-pool", "create", "--type", "process", "lewis")
    assert made.returncode == 0, made.stdout + made.stderr
    done = server.cli("deploy", "--prefect-file", "deployments/prefect.yaml", "--all")
    assert done.returncode == 0, done.stdout + done.stderr
