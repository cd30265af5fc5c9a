"""What surrounds every request: its id, its size limit, its token, its error body. Plain ASGI."""

import hmac
import logging
import time
import uuid
from collections import deque

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lewis_core.listener.metrics import ServiceMetrics
from lewis_core.listener.schemas import Problem

logger = logging.getLogger(__name__)
TITLES = {
    400: "Bad request",
    401: "Not authorised",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    413: "Too large",
    422: "Cannot be processed",
    500: "Internal error",
    503: "Busy",
}
RETRY_AFTER_S = 1
OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""Answered without a token, for orchestrators' probes."""


def problem_response(status: int, detail: str, request_id: str) -> Response:
    """An error as ``application/problem+json`` (RFC 9457)."""
    problem = Problem(title=TITLES.get(status, "Error"), status=status, detail=detail, request_id=request_id)
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(problem.model_dump_json(), status, headers, media_type="application/problem+json")


class RequestEnvelope:
    """ASGI middleware: names requests, checks token and size, counts, and answers crashes with a 500.

    Args:
        app: The application inside.
        metrics: Where requests are counted.
        token: Bearer token, if one is needed.
        max_body_bytes: Larger bodies are refused.
    """

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics, token: str | None, max_body_bytes: int) -> None:
        self._app, self._metrics, self._max_body_bytes = app, metrics, max_body_bytes
        self._token = f"Bearer {token}".encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = scope.setdefault("state", {})["request_id"] = uuid.uuid4().hex[:16]
        started, status = time.perf_counter(), 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            refusal = self._refusal(scope, request_id)
            body = None if refusal else await self._read(receive)
            if body is None:
                answer: ASGIApp = refusal or self._too_large(request_id)
                await answer(scope, receive, send_named)
            else:
                await self._app(scope, _replay(body, receive), send_named)
        except Exception:  # the process edge: a crash is that request's 500, with its id in the log
            logger.exception("request %s: %s %s crashed", request_id, scope["method"], scope["path"])
            if not status:
                detail = f"the service failed on this request; its log has the reason under {request_id}"
                await problem_response(500, detail, request_id)(scope, receive, send_named)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.count_request(route, status or 499, time.perf_counter() - started)

    def _refusal(self, scope: Scope, request_id: str) -> Response | None:
        headers = dict(scope["headers"])
        given: bytes = headers.get(b"authorization", b"")
        if self._token and scope["path"] not in OPEN_PATHS and not hmac.compare_digest(given, self._token):
            return problem_response(401, "this service needs a bearer token", request_id)
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_body_bytes:
            return self._too_large(request_id)
        return None

    def _too_large(self, request_id: str) -> Response:
        return problem_response(413, f"a request may have {self._max_body_bytes} bytes; send fewer items", request_id)

    async def _read(self, receive: Receive) -> list[Message] | None:
        """The body, message by message; ``None`` if it is too large, whatever its header says."""
        messages: list[Message] = []
        total = 0
        while not messages or messages[-1].get("more_body"):
            messages.append(await receive())
            total += len(messages[-1].get("body", b""))
            if total > self._max_body_bytes:
                return None
        return messages


def _replay(messages: list[Message], receive: Receive) -> Receive:
    waiting = deque(messages)

    async def replay() -> Message:
        return waiting.popleft() if waiting else await receive()

    return replay
