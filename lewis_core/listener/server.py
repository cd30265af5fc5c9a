"""How uvicorn serves the application to the impatient and the malicious: time limits of connections, and draining.

uvicorn has no limit for the time that a request's headers take, nor for a client that does not read its answer; both
would keep a connection, and memory, for ever. The protocol here adds them. It relies on uvicorn's h11 protocol, whose
attributes a test pins.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from lewis_core.listener.worker import ModelWorker

logger = logging.getLogger(__name__)
HEADER_TIMEOUT_S = 10.0
"""Seconds from a connection, or a request's first byte, to the end of its headers."""
WRITE_TIMEOUT_S = 60.0
"""Seconds for which a client may leave its answer unread."""
KEEP_ALIVE_S = 15
"""Seconds that a connection is kept between two requests."""
MAX_CONNECTIONS = 1024
"""Further ones are closed at once."""
CLOSE_S = 5
"""Seconds that are left for sending answers when the service ends."""


class _Clock:
    """Calls a function when it has run for some seconds; started twice, it goes on."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, call: Callable[[], None]) -> None:
        self._loop, self._seconds, self._call = loop, seconds, call
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._timer = self._timer or self._loop.call_later(self._seconds, self._call)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None


class PatientProtocol(H11Protocol):
    """HTTP/1.1 with limits of time and number."""

    header_timeout_s, write_timeout_s, max_connections = HEADER_TIMEOUT_S, WRITE_TIMEOUT_S, MAX_CONNECTIONS

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, unless there are too many."""
        super().connection_made(transport)
        self._headers = _Clock(self.loop, self.header_timeout_s, transport.abort)
        self._write = _Clock(self.loop, self.write_timeout_s, transport.abort)
        if len(self.connections) > self.max_connections:
            transport.abort()
            return
        self._headers.start()

    def data_received(self, data: bytes) -> None:
        """Take bytes; the clock runs while they are not whole headers."""
        super().data_received(data)
        if self._is_answering():
            self._headers.stop()
        else:
            self._headers.start()

    def on_response_complete(self) -> None:
        """Stop the clock between two requests, for which uvicorn has its own."""
        super().on_response_complete()
        if not self._is_answering():
            self._headers.stop()

    def pause_writing(self) -> None:
        """Start the clock for a client that does not read."""
        super().pause_writing()
        self._write.start()

    def resume_writing(self) -> None:
        """Stop it."""
        super().resume_writing()
        self._write.stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all clocks."""
        self._headers.stop()
        self._write.stop()
        super().connection_lost(exc)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete


class DrainingServer(uvicorn.Server):
    """A server that answers what it has taken before it ends.

    The first SIGTERM or SIGINT makes it refuse new requests (503, and not ready) and end when all others are answered,
    or after ``drain_s`` seconds; the second one ends it at once. After :meth:`hang_up`, ``on_hangup`` is called.

    Args:
        config: uvicorn's.
        worker: The service's.
        drain_s: Longest wait for requests that are being answered.
        on_hangup: Called in the event loop's thread.
    """

    def __init__(
        self, config: uvicorn.Config, worker: ModelWorker, drain_s: float, on_hangup: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._worker, self._drain_s, self._on_hangup = worker, drain_s, on_hangup
        self._drained_at: float | None = None
        self._hung_up = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; at the second signal, end."""
        if self._drained_at is None and self._worker.status == "ready":
            self._worker.drain()
            self._drained_at = time.monotonic() + self._drain_s
            return
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second: end when nothing is left to answer."""
        if self._hung_up:
            self._hung_up = False
            self._on_hangup()
        if self._drained_at is not None and (self._worker.is_idle or time.monotonic() > self._drained_at):
            self.should_exit = True
        return await super().on_tick(counter)

    def hang_up(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGHUP; the caller installs it."""
        self._hung_up = True


def make_server(app: FastAPI, *, drain_s: float, on_hangup: Callable[[], None] = lambda: None) -> DrainingServer:
    """A server for the application, silent about itself: no access log, no server header, no forwarded addresses."""
    settings: dict[str, Any] = {"http": PatientProtocol, "ws": "none", "loop": "asyncio"}
    config = uvicorn.Config(
        app,
        **settings,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=CLOSE_S,
        h11_max_incomplete_event_size=64 << 10,
    )
    return DrainingServer(config, app.state.worker, drain_s, on_hangup)
