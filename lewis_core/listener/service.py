"""The model service: one FastAPI application around one model.

The caller builds the model; the application loads it in the background, says when it is ready, and answers
``/v1/score``, ``/v1/choose``, ``/v1/generate`` and the reference's ``/score`` and ``/batch_score``. An error is never
answered with 200, and a failure never with a zero. Run it with ``python -m lewis_core.listener``.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from lewis_core.config.base import FrozenConfig
from lewis_core.errors import ImageAccessError, ImageError, ListenerBusyError, ModelError
from lewis_core.listener.budget import estimate_tokens
from lewis_core.listener.http import RequestEnvelope, problem_response
from lewis_core.listener.schemas import (
    ChoiceAnswer,
    ChoiceItem,
    ChooseRequest,
    ChooseResponse,
    GenerateRequest,
    GenerateResponse,
    Question,
    Readiness,
    ReferenceBatchRequest,
    ReferenceBatchResponse,
    ReferenceScoreRequest,
    ReferenceScoreResponse,
    ReferenceScoreResult,
    ScoreRequest,
    ScoreResponse,
)
from lewis_core.listener.scoring import predicted_index, reference_reward_score, yes_log_odds, yes_probability
from lewis_core.listener.worker import Job, Kind, ModelWorker
from lewis_core.models.answers import YES_NO
from lewis_core.models.protocol import AnsweringModel


class ServiceLimits(FrozenConfig):
    """How much a service takes."""

    max_body_bytes: int = Field(default=32 << 20, ge=1)
    """Larger request bodies get 413."""
    max_rows: int = Field(default=65_536, ge=1)
    """Pairs, questions or completions of one request; more get 413."""
    max_waiting: int = Field(default=128, ge=1)
    """Requests that wait for the model; further ones get 503."""
    call_tokens: int = Field(default=65_536, ge=1)
    """Waiting requests of the same kind share a call of the model up to about this many tokens; larger ones are served
    in slices, between which the others have their turn."""
    image_tokens: int = Field(default=512, ge=1)
    """About how many visual tokens an image has."""


def create_app(
    load: Callable[[], AnsweringModel],
    *,
    model_name: str,
    token: str | None = None,
    limits: ServiceLimits | None = None,
    on_failure: Callable[[BaseException], None] = lambda error: None,
) -> FastAPI:
    """Build the application.

    Args:
        load: Makes the model; called once, in the thread that will run it, when the application starts.
        model_name: Shown by ``/readyz``.
        token: Bearer token that clients must send.
        limits: How much it takes.
        on_failure: Called with the error when the model cannot be loaded.

    Returns:
        The application; start it with uvicorn.
    """
    limits = limits or ServiceLimits()
    worker = ModelWorker(load, limits.max_waiting, limits.call_tokens, on_failure)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        await asyncio.to_thread(worker.stop)

    app = FastAPI(title="Lewis model service", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(RequestEnvelope, metrics=worker.metrics, token=token, max_body_bytes=limits.max_body_bytes)
    _add_error_handlers(app)
    _add_probes(app, worker, model_name)
    endpoints = Endpoints(worker, limits)
    for path, endpoint in (
        ("/v1/score", endpoints.score),
        ("/v1/choose", endpoints.choose),
        ("/v1/generate", endpoints.generate),
        ("/score", endpoints.reference_score),
        ("/batch_score", endpoints.reference_batch_score),
    ):
        app.add_api_route(path, endpoint, methods=["POST"])
    return app


class Endpoints:
    """The questions that a service answers.

    Args:
        worker: Runs the model.
        limits: How much a request may ask.
    """

    def __init__(self, worker: ModelWorker, limits: ServiceLimits) -> None:
        self._worker, self._limits = worker, limits

    async def score(self, request: ScoreRequest) -> Response:
        """Score games."""
        started = time.perf_counter()
        rows = [len(game.candidates) * len(game.descriptions) for game in request.games]
        games = await self._ask("score", request.games, rows)
        return _reply(ScoreResponse(games=tuple(games), took_s=time.perf_counter() - started))

    async def choose(self, request: ChooseRequest) -> Response:
        """Answer multiple-choice questions."""
        started = time.perf_counter()
        answers = await self._ask("choose", request.items, [len(item.questions) for item in request.items])
        return _reply(ChooseResponse(items=tuple(map(tuple, answers)), took_s=time.perf_counter() - started))

    async def generate(self, request: GenerateRequest) -> Response:
        """Continue prompts."""
        started = time.perf_counter()
        texts = await self._ask("generate", request.items, [item.num_return for item in request.items])
        return _reply(GenerateResponse(items=tuple(map(tuple, texts)), took_s=time.perf_counter() - started))

    async def reference_score(self, request: ReferenceScoreRequest) -> Response:
        """Answer as the reference service does."""
        started = time.perf_counter()
        [result] = await self._reference([request])
        return _reply(ReferenceScoreResponse(**result.model_dump(), took=time.perf_counter() - started))

    async def reference_batch_score(self, request: ReferenceBatchRequest) -> Response:
        """Answer as the reference service does, for several questions."""
        started = time.perf_counter()
        results = await self._reference(request.batch)
        return _reply(ReferenceBatchResponse(results=tuple(results), took=time.perf_counter() - started))

    async def _reference(self, requests: Sequence[ReferenceScoreRequest]) -> list[ReferenceScoreResult]:
        items = [
            ChoiceItem(image=path, questions=(Question(prompt=request.question, choices=YES_NO),))
            for request in requests
            for path in request.candidate_paths
        ]
        answers = iter(await self._ask("choose", items, [1] * len(items)))
        return [_reference_result([next(answers)[0] for _ in request.candidate_paths]) for request in requests]

    async def _ask(self, kind: Kind, items: Sequence[Any], rows: Sequence[int]) -> list[Any]:
        """Let the model answer.

        Raises:
            HTTPException: 413, 500 or 503 if it will not.
        """
        if sum(rows) > self._limits.max_rows:
            raise HTTPException(413, f"{sum(rows)} rows in one request; the limit is {self._limits.max_rows}")
        if self._worker.status == "failed":
            raise HTTPException(500, f"the model could not be loaded: {self._worker.detail}")
        if self._worker.status == "loading":
            raise HTTPException(503, "the model is loading")
        tokens = [estimate_tokens(item, self._limits.image_tokens) for item in items]
        return await asyncio.wrap_future(self._worker.submit(Job(kind, items, rows, tokens)))


def _reference_result(answers: Iterable[ChoiceAnswer]) -> ReferenceScoreResult:
    probabilities = tuple(yes_probability(yes_log_odds(*answer.log_probs)) for answer in answers)
    return ReferenceScoreResult(
        yes_probabilities=probabilities,
        predicted_index=predicted_index(probabilities),
        reward_score=reference_reward_score(probabilities),
    )


def _reply(answer: BaseModel, status: int = 200) -> Response:
    return Response(answer.model_dump_json(), status, media_type="application/json")


def _add_probes(app: FastAPI, worker: ModelWorker, model_name: str) -> None:
    @app.get("/healthz")
    async def healthz() -> Response:
        return Response('{"status":"alive"}', media_type="application/json")

    @app.get("/readyz")
    async def readyz() -> Response:
        status = worker.status
        code = {"loading": 503, "ready": 200, "failed": 500}[status]
        readiness = Readiness(status=status, model=model_name, detail=worker.detail, vision_cache=worker.vision_cache())
        return _reply(readiness, code)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(worker.metrics.render(), media_type="text/plain; version=0.0.4")


def _add_error_handlers(app: FastAPI) -> None:
    """Errors that are the client's, or pass, get their status; all others are crashes (see ``http.py``)."""
    statuses: dict[type[Exception], int] = {
        ImageAccessError: 403,
        ImageError: 422,
        ModelError: 422,
        ListenerBusyError: 503,
    }
    for error_type, status in statuses.items():
        app.add_exception_handler(error_type, _handler(status))
    app.add_exception_handler(RequestValidationError, _refuse_input)
    app.add_exception_handler(HTTPException, _refuse)


def _handler(status: int) -> Callable[[Request, Exception], Response]:
    def handle(request: Request, error: Exception) -> Response:
        return problem_response(status, str(error), request.state.request_id)

    return handle


def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return problem_response(error.status_code, str(error.detail), request.state.request_id)


def _refuse_input(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    wrong = [f"{'.'.join(map(str, one['loc'][1:])) or 'body'}: {one['msg']}" for one in error.errors()]
    more = f" (and {len(wrong) - 5} more)" if len(wrong) > 5 else ""
    return problem_response(422, "; ".join(wrong[:5]) + more, request.state.request_id)
