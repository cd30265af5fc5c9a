"""One work folder for all tests here: a run of the smallest pipeline that was killed, and went on to its end."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.e2e.workplace import ROOT, STEPS, Workplace
from tests.orchestration.live import wait_for


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """One folder for all tests here, in their order."""
    return Workplace(tmp_path_factory.mktemp("smoke"))


@pytest.fixture(scope="session")
def killed(workplace: Workplace) -> Iterator[float]:
    """A run that was killed in the middle of training; how long its processes lived on, in seconds."""
    log = workplace.folder / "first.log"
    with log.open("w") as file:
        run = subprocess.Popen(workplace.command(STEPS), cwd=ROOT, stdout=file, stderr=file)
    try:
        checkpoint = wait_for(
            lambda: next(iter(workplace.folder.glob("store/work/train-*/checkpoints/*/complete")), None)
        )
        assert checkpoint is not None and run.poll() is None, log.read_text()[-6000:]
        run.send_signal(signal.SIGKILL)
        run.wait()
        started = time.monotonic()
        assert wait_for(lambda: not workplace.processes(), timeout_s=150), workplace.processes()
        yield time.monotonic() - started
    finally:
        for process in [*workplace.processes(), *([psutil.Process(run.pid)] if run.poll() is None else [])]:
            os.kill(process.pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def finished(workplace: Workplace, killed: float) -> dict[str, Any]:
    """The last line of the same command after the kill: everything is there then."""
    return workplace.run(STEPS)
