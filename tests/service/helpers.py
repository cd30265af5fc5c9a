"""What several tests of the service share: an application in this process, and one behind a real socket."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from lewis_core.listener.__main__ import bind
from lewis_core.listener.server import make_server
from lewis_core.listener.service import create_app
from lewis_core.testing import FakeModel

PATIENCE_S = 120
COUNTS = os.environ.get("ROBUSTNESS_COUNTS")
"""File that gets the number of inputs tried; ``python -m infra.robustness inputs`` names it."""
GAME = {"candidates": ["a.jpg", "b.jpg"], "descriptions": ["red", "blue", "green"]}


def count(what: str, number: int, **facts: Any) -> None:
    """Note how many inputs were tried, if somebody wants to know."""
    if COUNTS:
        with Path(COUNTS).open("a") as file:
            file.write(json.dumps({"what": what, "number": number, **facts}) + "\n")


def wait_for(condition: Callable[[], Any], what: str = "") -> Any:
    """Wait, generously, until something is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.005)
    return found


@contextmanager
def serving(load: Callable[[], object], ready: int = 200, **options: Any) -> Iterator[TestClient]:
    """A client of an application that is ready (or has the status that is expected)."""
    with TestClient(create_app(load, model_name="fake", **options), raise_server_exceptions=False) as client:
        wait_for(lambda: client.get("/readyz").status_code == ready)
        yield client


@contextmanager
def listening(load: Callable[[], object], drain_s: float = 20.0, **options: Any) -> Iterator[Any]:
    """The service behind a real socket of this machine: a server with ``app`` and ``port``."""
    app = create_app(load, model_name="fake", **options)
    socket = bind("127.0.0.1", 0)
    server = make_server(app, drain_s=drain_s)
    server.app, server.port = app, socket.getsockname()[1]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
    thread.start()
    try:
        wait_for(lambda: server.started and app.state.worker.status == "ready")
        yield server
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


class Gate(FakeModel):
    """Waits for a signal before each answer, and remembers how much was asked together."""

    def __init__(self, *answers: Any) -> None:
        super().__init__(*answers)
        self.open, self.entered, self.calls = threading.Event(), threading.Event(), []

    def score(self, games: Any) -> Any:
        """Note the call, and wait."""
        self.calls.append(len(games))
        self.entered.set()
        assert self.open.wait(PATIENCE_S)
        return super().score(games)


class Asker(threading.Thread):
    """Asks in the background; the answer is there after ``join``."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._ask, self.answer = ask, None
        self.start()

    def run(self) -> None:
        """Ask."""
        self.answer = self._ask()

    def wait(self) -> Any:
        """The answer."""
        self.join(PATIENCE_S)
        assert not self.is_alive()
        return self.answer
