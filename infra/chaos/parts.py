"""The two processes of a training run, each of which can be killed: the listener's service and the trainer.

They are forked from a server that has imported everything, so that starting one again takes no time.
"""

import multiprocessing
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

PRELOADED = ["torch", "trl", "lewis_core.training.session", "lewis_core.training.shared_prefix",
             "lewis_core.training.callbacks", "lewis_core.listener.service", "lewis_core.models.vlm",
             "infra.chaos.world"]  # fmt: skip


def context() -> ForkServerContext:
    """Where processes come from."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(PRELOADED)
    return found


def free_port() -> int:
    """A port that nobody used a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Listener:
    """The pocket listener on a port, which stays the same.

    Args:
        photos: Folder of photos.
        log: File that gets its output.
    """

    def __init__(self, photos: Path, log: Path) -> None:
        self._photos, self._log, self._port = photos, log, free_port()
        self._process: BaseProcess | None = None
        self.url = f"http://127.0.0.1:{self._port}"
        self.starts = 0

    def start(self) -> None:
        """Start it; it is ready a while later."""
        self._process = context().Process(target=_serve, args=(self._photos, self._port, self._log), daemon=True)
        self._process.start()
        self.starts += 1

    def ensure(self) -> None:
        """Start it if it is dead."""
        if self._process is None or not self._process.is_alive():
            self.start()

    def kill(self) -> None:
        """``kill -9``, and wait until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.join()


class Trainer:
    """The trainer, as the flow starts it: ``tasks.launch`` with a spec file.

    Args:
        spec: The spec file.
    """

    def __init__(self, spec: Path) -> None:
        ours, theirs = context().Pipe(duplex=False)
        self._process = context().Process(target=_train, args=(spec, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._lines = os.fdopen(os.dup(ours.fileno()), encoding="utf-8", errors="replace")
        ours.close()

    def lines(self) -> Iterator[str]:
        """What it writes, until it ends."""
        with self._lines:
            yield from self._lines

    def kill(self) -> None:
        """``kill -9``."""
        self._process.kill()

    def fill_disk(self, max_bytes: int | None) -> None:
        """Let the kernel refuse all files of this process that grow beyond a size; ``None``: no longer."""
        with suppress(ProcessLookupError):
            limit = resource.RLIM_INFINITY if max_bytes is None else max_bytes
            resource.prlimit(self._process.pid or 0, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    def wait(self) -> int:
        """Wait for its end; returns its exit status, negative for a signal's number."""
        self._process.join()
        return self._process.exitcode or 0


def _serve(photos: Path, port: int, log: Path) -> None:
    from infra.chaos.world import POCKET
    from lewis_core.listener.__main__ import main

    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    arguments = ["--model", POCKET.model_dump_json(), "--image-root", str(photos), "--port", str(port)]
    sys.exit(main([*arguments, "--device", "cpu", "--threads", "1", "--workers", "1"]))


def _train(spec: Path, output: Any) -> None:
    from tasks.launch import main

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    sys.exit(main(spec))
