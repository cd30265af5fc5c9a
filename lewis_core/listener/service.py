"""The model service: one FastAPI application around one model.

The caller builds the model; the application loads it in the background, says when it is ready, and answers
``/v1/score``, ``/v1/choose``, ``/v1/generate`` and the reference's ``/score`` and ``/batch_score``. An error is never
answered with 200, and a failure never with a zero. Run it with ``python -m lewis_core.listener``.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from lewis_core.errors import ImageAccessError, ImageError, ListenerBusyError, ListenerDeadlineError, ModelError
from lewis_core.listener.access import Access
from lewis_core.listener.budget import check_items, estimate_tokens
from lewis_core.listener.describing import BatchDescribeResponse, Describer, DescribeResponse
from lewis_core.listener.http import RequestEnvelope, problem_response
from lewis_core.listener.jobs import Job, Kind
from lewis_core.listener.limits import ServiceLimits
from lewis_core.listener.schemas import (
    ChoiceAnswer,
    ChoiceItem,
    ChooseRequest,
    ChooseResponse,
    GenerateItem,
    GenerateRequest,
    GenerateResponse,
    Problem,
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
from lewis_core.listener.worker import ModelWorker
from lewis_core.models.answers import YES_NO
from lewis_core.models.protocol import AnsweringModel

WATCH_S = 1.0
"""How often a call of the model that takes too long is looked for."""
HeaderPatience = Annotated[
    float | None,
    Header(
        alias="X-Request-Timeout",
        gt=0,
        le=86_400,
        allow_inf_nan=False,
        description="Seconds after which the answer is not wanted any more; 504 then.",
    ),
]
UNREADY: dict[int | str, str] = {500: "The model cannot be run", 503: "Loading or stopping"}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/problem+json": {"schema": Problem.model_json_schema()}}}
    for status, text in {
        400: "The body is not JSON",
        401: "No valid bearer token",
        403: "An image outside of the allowed folders, or a request of a web page",
        408: "The body came too slowly",
        413: "Too many bytes, rows or images",
        422: "A field, an image or a combination that cannot be processed",
        500: "The service failed on this request",
        503: "Busy, loading or stopping; Retry-After says when to ask again",
        504: "The request's own deadline has passed",
    }.items()
}


def create_app(
    load: Callable[[], AnsweringModel],
    *,
    model_name: str,
    access: Access | None = None,
    limits: ServiceLimits | None = None,
    on_failure: Callable[[BaseException], None] = lambda error: None,
) -> FastAPI:
    """Build the application.

    Args:
        load: Makes the model; called once, in the thread that will run it, when the application starts.
        model_name: Shown by ``/readyz``.
        access: Who may ask; everybody by default.
        limits: How much it takes.
        on_failure: Called with the error when the model cannot be loaded, or no longer be run.

    Returns:
        The application, with its worker as ``app.state.worker``; start it with uvicorn.
    """
    limits = limits or ServiceLimits()
    worker = ModelWorker(
        load,
        limits.max_waiting,
        limits.call_tokens,
        on_failure,
        max_wait_s=limits.max_wait_s,
        max_call_s=limits.max_call_s,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker.start()
        watch = asyncio.create_task(_watch(worker))
        yield
        watch.cancel()
        await asyncio.to_thread(worker.stop)

    app = FastAPI(title="Lewis model service", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.worker = worker
    app.add_middleware(RequestEnvelope, metrics=worker.metrics, access=access or Access(), limits=limits)
    _add_error_handlers(app)
    _add_probes(app, worker, model_name)
    endpoints = Endpoints(worker, limits)
    describer = Describer(endpoints.write)
    for path, endpoint, answer in (
        ("/v1/score", endpoints.score, ScoreResponse),
        ("/v1/choose", endpoints.choose, ChooseResponse),
        ("/v1/generate", endpoints.generate, GenerateResponse),
        ("/score", endpoints.reference_score, ReferenceScoreResponse),
        ("/batch_score", endpoints.reference_batch_score, ReferenceBatchResponse),
        ("/describe", describer.describe, DescribeResponse),
        ("/batch_describe", describer.batch_describe, BatchDescribeResponse),
    ):
        app.add_api_route(path, endpoint, methods=["POST"], response_model=answer, responses=ERRORS)
    return app


async def _watch(worker: ModelWorker) -> None:
    while True:
        await asyncio.sleep(WATCH_S)
        worker.watch()


class Endpoints:
    """The questions that a service answers.

    Args:
        worker: Runs the model.
        limits: How much a request may ask.
    """

    def __init__(self, worker: ModelWorker, limits: ServiceLimits) -> None:
        self._worker, self._limits = worker, limits

    async def score(self, request: ScoreRequest, timeout_s: HeaderPatience = None) -> Response:
        """Score games."""
        started = time.perf_counter()
        rows = [len(game.candidates) * len(game.descriptions) for game in request.games]
        games = await self._ask("score", request.games, rows, timeout_s, request.timeout_s)
        return _reply(ScoreResponse(games=tuple(games), took_s=time.perf_counter() - started))

    async def choose(self, request: ChooseRequest, timeout_s: HeaderPatience = None) -> Response:
        """Answer multiple-choice questions."""
        started = time.perf_counter()
        rows = [len(item.questions) for item in request.items]
        answers = await self._ask("choose", request.items, rows, timeout_s, request.timeout_s)
        return _reply(ChooseResponse(items=tuple(map(tuple, answers)), took_s=time.perf_counter() - started))

    async def generate(self, request: GenerateRequest, timeout_s: HeaderPatience = None) -> Response:
        """Continue prompts."""
        started = time.perf_counter()
        rows = [item.num_return for item in request.items]
        texts = await self._ask("generate", request.items, rows, timeout_s, request.timeout_s)
        return _reply(GenerateResponse(items=tuple(map(tuple, texts)), took_s=time.perf_counter() - started))

    async def write(self, items: Sequence[GenerateItem]) -> list[list[str]]:
        """Continue prompts, for another form of the same question."""
        return await self._ask("generate", items, [item.num_return for item in items])

    async def reference_score(self, request: ReferenceScoreRequest, timeout_s: HeaderPatience = None) -> Response:
        """Answer as the reference service does."""
        started = time.perf_counter()
        [result] = await self._reference([request], timeout_s)
        return _reply(ReferenceScoreResponse(**result.model_dump(), took=time.perf_counter() - started))

    async def reference_batch_score(self, request: ReferenceBatchRequest, timeout_s: HeaderPatience = None) -> Response:
        """Answer as the reference service does, for several questions."""
        started = time.perf_counter()
        results = await self._reference(request.batch, timeout_s)
        return _reply(ReferenceBatchResponse(results=tuple(results), took=time.perf_counter() - started))

    async def _reference(
        self, requests: Sequence[ReferenceScoreRequest], timeout_s: float | None
    ) -> list[ReferenceScoreResult]:
        items = [
            ChoiceItem(image=path, questions=(Question(prompt=request.question, choices=YES_NO),))
            for request in requests
            for path in request.candidate_paths
        ]
        answers = iter(await self._ask("choose", items, [1] * len(items), timeout_s))
        return [_reference_result([next(answers)[0] for _ in request.candidate_paths]) for request in requests]

    async def _ask(self, kind: Kind, items: Sequence[Any], rows: Sequence[int], *timeouts_s: float | None) -> list[Any]:
        """Let the model answer.

        Raises:
            HTTPException: 413, 422, 500 or 503 if it will not.
            ListenerDeadlineError: If it did not answer in time; its work is dropped.
        """
        if refused := check_items(items, rows, self._limits):
            raise HTTPException(*refused)
        if self._worker.status == "failed":
            raise HTTPException(500, f"the model cannot be run: {self._worker.detail}")
        if self._worker.status == "loading":
            raise HTTPException(503, "the model is loading")
        patience_s = min([self._limits.deadline_s, *(given for given in timeouts_s if given is not None)])
        tokens = [estimate_tokens(item, self._limits.image_tokens) for item in items]
        job = Job(kind, items, rows, tokens, deadline=time.monotonic() + patience_s)
        try:
            async with asyncio.timeout(patience_s) as time_left:
                return await asyncio.wrap_future(self._worker.submit(job))
        except TimeoutError as error:
            if not time_left.expired():
                raise
            raise ListenerDeadlineError(f"the answer was not ready after {patience_s:g} s") from error


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

    unready = {status: {"model": Readiness, "description": text} for status, text in UNREADY.items()}

    @app.get("/readyz", response_model=Readiness, responses=unready)
    async def readyz() -> Response:
        status = worker.status
        code = {"loading": 503, "ready": 200, "stopping": 503, "failed": 500}[status]
        serves = worker.serves()
        readiness = Readiness(
            status=status,
            model=serves.path if serves else model_name,
            detail=worker.detail,
            generation=worker.generation,
            vision_cache=worker.vision_cache(),
            prompt_cache=worker.prompt_cache(),
            serves=serves,
        )
        return _reply(readiness, code)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(worker.metrics.render(), media_type="text/plain; version=0.0.4")


def _add_error_handlers(app: FastAPI) -> None:
    """Errors that are the client's, or pass, get their status; all others are crashes (see ``http.py``)."""
    statuses: dict[type[Exception], int] = {
        ImageAccessError: 403,
        ImageError: 422,
        ModelError: 422,
        ListenerBusyError: 503,
        ListenerDeadlineError: 504,
    }
    for error_type, status in statuses.items():
        app.add_exception_handler(error_type, _handler(status))
    app.add_exception_handler(RequestValidationError, _refuse_input)
    app.add_exception_handler(HTTPException, _refuse)


def _handler(status: int) -> Callable[[Request, Exception], Response]:
    def handle(request: Request, error: Exception) -> Response:
        pause_s = error.retry_after_s if isinstance(error, ListenerBusyError) else 1.0
        return problem_response(status, str(error), request.state.request_id, pause_s)

    return handle


def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return problem_response(error.status_code, str(error.detail), request.state.request_id)


def _refuse_input(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    wrong = [f"{'.'.join(map(str, one['loc'][1:])) or 'body'}: {one['msg']}" for one in error.errors()]
    more = f" (and {len(wrong) - 5} more)" if len(wrong) > 5 else ""
    return problem_response(422, "; ".join(wrong[:5]) + more, request.state.request_id)
