"""One thread owns the model; requests wait in a bounded queue and share its calls.

Each call takes items of the waiting requests, in the order in which they came, up to a number of tokens: small
requests ride together, and a large one is served in slices, between which the others have their turn. When a call
fails it is repeated in halves, so that an error reaches only the request that caused it.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

from lewis_core.errors import ListenerBusyError
from lewis_core.listener.metrics import ServiceMetrics
from lewis_core.listener.schemas import CacheStatistics
from lewis_core.models.protocol import AnsweringModel, KeepsFeatures

logger = logging.getLogger(__name__)
Kind = Literal["score", "choose", "generate"]
Status = Literal["loading", "ready", "failed"]


@dataclass(frozen=True, eq=False)
class Job:
    """One request's work for the model."""

    kind: Kind
    items: Sequence[Any]
    """Games, choice items or generate items."""
    rows: Sequence[int]
    """Pairs, questions or completions of each item."""
    tokens: Sequence[int]
    """About how many tokens each item costs."""
    answers: list[Any] = field(default_factory=list)
    """Those of the first items, as far as it is done."""
    future: "Future[list[Any]]" = field(default_factory=Future)

    def __post_init__(self) -> None:
        if not len(self.items) == len(self.rows) == len(self.tokens) > 0:
            raise ValueError("a job needs at least one item, and of each its rows and tokens")


@dataclass(frozen=True)
class _Slice:
    """The next items of a job."""

    job: Job
    stop: int

    @property
    def items(self) -> Sequence[Any]:
        return self.job.items[len(self.job.answers) : self.stop]

    @property
    def rows(self) -> int:
        return sum(self.job.rows[len(self.job.answers) : self.stop])


class ModelWorker:
    """Loads a model and runs it, all in one thread.

    Args:
        load: Makes the model; called in the thread.
        max_waiting: Requests that may wait.
        call_tokens: Tokens of one call, about; a single item may have more.
        on_failure: Called with the error when the model cannot be loaded.
    """

    def __init__(
        self,
        load: Callable[[], AnsweringModel],
        max_waiting: int,
        call_tokens: int,
        on_failure: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self._load, self._max_waiting, self._call_tokens = load, max_waiting, call_tokens
        self._on_failure = on_failure
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._model: AnsweringModel | None = None
        self.metrics = ServiceMetrics(lambda: len(self._waiting), self.vision_cache)
        self.status: Status = "loading"
        self.detail = ""
        """Why loading failed."""

    def start(self) -> None:
        """Start loading the model."""
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Refuse what is waiting; wait for the call that is running, but not for a model that is still loading."""
        with self._changed:
            self._stopping = True
            waiting, self._waiting = list(self._waiting), deque()
            self._changed.notify_all()
        for job in waiting:
            _refuse(job)
        self._thread.join(timeout_s if self.status == "ready" else 0.1)

    def vision_cache(self) -> CacheStatistics | None:
        """How well the model reuses vision features; ``None`` before it is loaded, or if it keeps none."""
        return self._model.vision_cache() if isinstance(self._model, KeepsFeatures) else None

    def submit(self, job: Job) -> "Future[list[Any]]":
        """Queue a job.

        Raises:
            ListenerBusyError: If the queue is full, or the service is stopping.
        """
        with self._changed:
            if self._stopping:
                raise ListenerBusyError("the service is stopping")
            if len(self._waiting) >= self._max_waiting:
                raise ListenerBusyError(f"{len(self._waiting)} requests are waiting already")
            self._waiting.append(job)
            self._changed.notify()
        return job.future

    def _run(self) -> None:
        started = time.monotonic()
        try:
            model = self._model = self._load()
        except BaseException as error:  # noqa: BLE001 - the thread's edge: whatever it is, readyz has to say it
            self.detail = f"{type(error).__name__}: {error}"
            self.status = "failed"
            logger.error("the model cannot be loaded: %s", self.detail)
            self._on_failure(error)
            return
        logger.info("model loaded in %.1f s", time.monotonic() - started)
        self.status = "ready"
        while slices := self._next_call():
            self._answer(model, slices)
            self._put_back([one.job for one in slices])

    def _next_call(self) -> list[_Slice]:
        """Wait for work; take the oldest request, and of the others of its kind what fits in with it."""
        with self._changed:
            while not self._stopping:
                self._waiting = deque(job for job in self._waiting if job.answers or not job.future.cancelled())
                if slices := self._cut():
                    return slices
                if not self._waiting:
                    self._changed.wait()
            return []

    def _cut(self) -> list[_Slice]:
        slices: list[_Slice] = []
        left = self._call_tokens
        for job in list(self._waiting):
            start = stop = len(job.answers)
            if job.kind != self._waiting[0].kind:
                continue
            while stop < len(job.items) and (job.tokens[stop] <= left or not (slices or stop > start)):
                left -= job.tokens[stop]
                stop += 1
            if stop > start:
                slices.append(_Slice(job, stop))
        for one in slices:
            self._waiting.remove(one.job)
        return [one for one in slices if one.job.answers or one.job.future.set_running_or_notify_cancel()]

    def _put_back(self, jobs: Sequence[Job]) -> None:
        """Let what is not finished wait for another turn, behind those that came meanwhile."""
        unfinished = [job for job in jobs if not job.future.done()]
        with self._changed:
            if not self._stopping:
                self._waiting.extend(unfinished)
                return
        for job in unfinished:
            _refuse(job)

    def _answer(self, model: AnsweringModel, slices: Sequence[_Slice]) -> None:
        try:
            answers = self._call(model, slices)
        except Exception as error:  # noqa: BLE001 - the worker's edge: the error belongs to the request, not to the thread
            if len(slices) == 1:  # a future cannot carry StopIteration
                known = RuntimeError(repr(error)) if isinstance(error, StopIteration) else error
                slices[0].job.future.set_exception(known)
                return
            half = len(slices) // 2
            self._answer(model, slices[:half])
            self._answer(model, slices[half:])
            return
        for one, of_slice in zip(slices, answers, strict=True):
            one.job.answers.extend(of_slice)
            if len(one.job.answers) == len(one.job.items):
                one.job.future.set_result(one.job.answers)

    def _call(self, model: AnsweringModel, slices: Sequence[_Slice]) -> list[list[Any]]:
        """Run the slices' items together, and hand each slice its own answers."""
        kind = slices[0].job.kind
        items = [item for one in slices for item in one.items]
        self.metrics.count_call(kind, sum(one.rows for one in slices))
        calls: dict[Kind, Callable[[Sequence[Any]], list[Any]]] = {
            "score": model.score,
            "choose": model.choose,
            "generate": model.generate,
        }
        answers = calls[kind](items)
        if len(answers) != len(items):
            raise RuntimeError(f"the model gave {len(answers)} answers to {len(items)} items")
        rest = iter(answers)
        return [[next(rest) for _ in one.items] for one in slices]


def _refuse(job: Job) -> None:
    if job.answers or job.future.set_running_or_notify_cancel():
        job.future.set_exception(ListenerBusyError("the service is stopping"))
