"""What surrounds every request: its id, its size and time limits, its token, its error body. Plain ASGI."""

import asyncio
import logging
import re
import time
import uuid
from collections import deque
from collections.abc import Mapping

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lewis_core.listener.access import Access
from lewis_core.listener.limits import ServiceLimits
from lewis_core.listener.metrics import ServiceMetrics
from lewis_core.listener.schemas import Problem

logger = logging.getLogger(__name__)
TITLES = {
    400: "Bad request",
    401: "Not authorised",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    408: "Too slow",
    413: "Too large",
    422: "Cannot be processed",
    500: "Internal error",
    503: "Busy",
    504: "Not ready in time",
}
OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""Answered without a token, for orchestrators' probes."""
_GIVEN_UP = 499
"""Counted when the client went away before its answer."""
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_DRAINED_BODIES = 4
"""A body this many times too large is still read (and forgotten), so that the client hears the answer."""


def problem_response(status: int, detail: str, request_id: str, retry_after_s: float = 1.0) -> Response:
    """An error as ``application/problem+json`` (RFC 9457)."""
    shown = detail.encode("utf-8", "replace").decode("utf-8")  # bad input may hold half characters
    problem = Problem(title=TITLES.get(status, "Error"), status=status, detail=shown, request_id=request_id)
    headers = {"Retry-After": f"{max(1.0, retry_after_s):.0f}"} if status == 503 else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(problem.model_dump_json(), status, headers, media_type="application/problem+json")


class RequestEnvelope:
    """ASGI middleware: names requests, checks token, size and time, counts, and answers crashes with a 500.

    A client that goes away has its request cancelled.

    Args:
        app: The application inside.
        metrics: Where requests are counted.
        access: Who may ask.
        limits: How much is taken.
    """

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics, access: Access, limits: ServiceLimits) -> None:
        self._app, self._metrics, self._access, self._limits = app, metrics, access, limits
        self._buffered = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        request_id = scope.setdefault("state", {})["request_id"] = request_id_of(headers)
        started, status = time.perf_counter(), 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [(b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")]
                message["headers"] = [*message.get("headers", ()), *extra, (b"cache-control", b"no-store")]
            await send(message)

        try:
            refusal = self._refusal(scope["path"], headers, request_id)
            if refusal is not None:
                await refusal(scope, receive, send_named)
            else:
                await self._serve(scope, receive, send_named, request_id)
        except Exception:  # the process edge: a crash is that request's 500, with its id in the log
            logger.exception("request %s: %s %s crashed", request_id, scope["method"], scope["path"])
            if not status:
                detail = f"the service failed on this request; its log has the reason under {request_id}"
                await problem_response(500, detail, request_id)(scope, receive, send_named)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            took_s = time.perf_counter() - started
            self._metrics.count_request(route, status or _GIVEN_UP, took_s)
            level = logging.INFO if status >= 400 and scope["path"] not in OPEN_PATHS else logging.DEBUG
            logger.log(level, "request %s: %s %s: %d, %.3f s", request_id, scope["method"], route, status, took_s)

    def _refusal(self, path: str, headers: Mapping[bytes, bytes], request_id: str) -> Response | None:
        """What is wrong before the body is read."""
        if path not in OPEN_PATHS and not self._access.admits(headers.get(b"authorization", b"")):
            return problem_response(401, "this service needs a bearer token", request_id)
        if b"origin" in headers or headers.get(b"sec-fetch-site") == b"cross-site":
            return problem_response(403, "this service does not answer to web pages", request_id)
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > _DRAINED_BODIES * self._limits.max_body_bytes:
            return self._too_large(request_id)
        return None

    async def _serve(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        body = _Body(self)
        try:
            async with asyncio.timeout(self._limits.body_timeout_s) as time_left:
                refused = await body.read(receive)
        except TimeoutError:
            if not time_left.expired():
                raise
            refused = 408
        try:
            if refused == 413:
                await self._too_large(request_id)(scope, receive, send)
            elif refused:
                detail = {408: "the request's body came too slowly", 503: "too many large requests at the same time"}
                await problem_response(refused, detail[refused], request_id)(scope, receive, send)
            elif not body.is_cut:
                await _until_gone(self._app, scope, body, receive, send)
        finally:
            self._buffered -= body.held

    def _too_large(self, request_id: str) -> Response:
        detail = f"a request may have {self._limits.max_body_bytes} bytes; send fewer items"
        return problem_response(413, detail, request_id)

    def hold(self, count: int) -> bool:
        """Account for bytes of a body; whether there is room for them."""
        self._buffered += count
        return self._buffered <= self._limits.max_buffered_bytes

    @property
    def max_body_bytes(self) -> int:
        """Bytes that a body may have."""
        return self._limits.max_body_bytes


class _Body:
    """A request's body, message by message."""

    def __init__(self, envelope: RequestEnvelope) -> None:
        self._envelope = envelope
        self._messages: deque[Message] = deque()
        self.held = 0
        """Bytes that are accounted for."""
        self.is_cut = False
        """Whether the client went away before the end."""

    async def read(self, receive: Receive) -> int:
        """Read all of it; returns 0, or the status of a body that is too large, or too large for now."""
        total, most, more = 0, self._envelope.max_body_bytes, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.is_cut = True
                return 0
            size, more = len(message.get("body", b"")), message.get("more_body", False)
            total += size
            if total > most:
                self._messages.clear()
                if total > _DRAINED_BODIES * most:
                    return 413
                continue
            self.held += size
            if not self._envelope.hold(size):
                return 503
            self._messages.append(message)
        return 413 if total > most else 0

    def replay(self, receive: Receive) -> Receive:
        """The body again, for the application."""

        async def replay() -> Message:
            return self._messages.popleft() if self._messages else await receive()

        return replay


async def _until_gone(app: ASGIApp, scope: Scope, body: _Body, receive: Receive, send: Send) -> None:
    """Run the application until it has answered, or the client has gone: nobody wants the answer then."""
    work = asyncio.ensure_future(app(scope, body.replay(receive), send))
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            await work
    finally:
        for task in (work, gone):
            task.cancel()
        await asyncio.wait({work, gone})
        if not work.cancelled():
            work.exception()  # seen, so that nobody complains about one that comes after the client has gone


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def request_id_of(headers: Mapping[bytes, bytes]) -> str:
    """The id that the client gave its request if it is well-formed (1 to 128 of ``A-Za-z0-9._:-``), or a new one."""
    given = headers.get(b"x-request-id", b"")
    return given.decode() if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex[:16]
