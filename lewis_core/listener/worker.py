"""One thread owns the model; requests wait in a bounded queue and are packed together.

Waiting requests of the same kind become one call of the model, up to a number of rows. When a packed call fails, its
requests are run again one by one, so that an error reaches only the request that caused it.
"""

import itertools
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
    rows: int
    """Pairs, questions or completions in it."""
    future: "Future[list[Any]]" = field(default_factory=Future)


class ModelWorker:
    """Loads a model and runs it, all in one thread.

    Args:
        load: Makes the model; called in the thread.
        max_waiting: Requests that may wait.
        packed_rows: Rows of one packed call.
        on_failure: Called with the error when the model cannot be loaded.
    """

    def __init__(
        self,
        load: Callable[[], AnsweringModel],
        max_waiting: int,
        packed_rows: int,
        on_failure: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self._load, self._max_waiting, self._packed_rows = load, max_waiting, packed_rows
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
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(ListenerBusyError("the service is stopping"))
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
        while jobs := self._next_jobs():
            self._answer(model, jobs)

    def _next_jobs(self) -> list[Job]:
        """Wait for work; take the oldest request, and the others of its kind that fit in with it."""
        with self._changed:
            while not self._waiting and not self._stopping:
                self._changed.wait()
            jobs: list[Job] = []
            rows = 0
            for job in list(self._waiting):
                if jobs and (job.kind != jobs[0].kind or rows + job.rows > self._packed_rows):
                    continue
                self._waiting.remove(job)
                if not job.future.set_running_or_notify_cancel():  # the client went away
                    continue
                jobs.append(job)
                rows += job.rows
            return jobs if jobs or self._stopping else self._next_jobs()

    def _answer(self, model: AnsweringModel, jobs: Sequence[Job]) -> None:
        try:
            results = self._call(model, jobs)
        except Exception as error:  # noqa: BLE001 - the worker's edge: the error belongs to the request, not to the thread
            if len(jobs) == 1:  # a future cannot carry StopIteration
                jobs[0].future.set_exception(RuntimeError(repr(error)) if isinstance(error, StopIteration) else error)
                return
            for job in jobs:
                self._answer(model, [job])
            return
        for job, result in zip(jobs, results, strict=True):
            job.future.set_result(result)

    def _call(self, model: AnsweringModel, jobs: Sequence[Job]) -> list[list[Any]]:
        """Run the jobs' items together, and hand each job its own answers."""
        kind = jobs[0].kind
        items = [item for job in jobs for item in job.items]
        self.metrics.count_call(kind, sum(job.rows for job in jobs))
        calls: dict[Kind, Callable[[Sequence[Any]], list[Any]]] = {
            "score": model.score,
            "choose": model.choose,
            "generate": model.generate,
        }
        answers = calls[kind](items)
        if len(answers) != len(items):
            raise RuntimeError(f"the model gave {len(answers)} answers to {len(items)} items")
        ends = list(itertools.accumulate(len(job.items) for job in jobs))
        return [answers[end - len(job.items) : end] for job, end in zip(jobs, ends, strict=True)]
