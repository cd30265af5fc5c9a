"""One thread owns the model; requests wait in a bounded queue (``jobs.py``) and share its calls.

Each call takes items of the waiting requests, in the order in which they came, up to a number of tokens: small
requests ride together, and a large one is served in slices, between which the others have their turn. When a call
fails it is repeated in halves, so that an error reaches only the request that caused it. What nobody waits for any
longer is dropped before it costs anything. Another model can take the place of this one between two calls.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Literal

from lewis_core.errors import ListenerBusyError
from lewis_core.listener.jobs import Job, JobQueue, Kind, Slice
from lewis_core.listener.metrics import ServiceMetrics
from lewis_core.listener.schemas import CacheStatistics, Serves
from lewis_core.models.protocol import AnsweringModel, KeepsImages

logger = logging.getLogger(__name__)
Status = Literal["loading", "ready", "stopping", "failed"]
Load = Callable[[], AnsweringModel]
MAX_CRASHES, CRASH_WINDOW_S = 3, 600.0
"""A thread that breaks more often than this in so many seconds is given up."""
_NO_MEMORY = ("OutOfMemoryError", "MemoryError")
_STOPPING = "the service is stopping"


class ModelWorker:
    """Loads a model and runs it, all in one thread.

    Args:
        load: Makes the model; called in the thread.
        max_waiting: Requests that may wait.
        call_tokens: Tokens of one call, about; a single item may have more.
        on_failure: Called with the error when the model cannot be loaded, or no longer be run.
        max_wait_s: Longest wait of a request for its turn.
        max_call_s: Longest call of the model; see :meth:`watch`.
    """

    def __init__(
        self,
        load: Load,
        max_waiting: int,
        call_tokens: int,
        on_failure: Callable[[BaseException], None] = lambda error: None,
        *,
        max_wait_s: float = 300.0,
        max_call_s: float = 1800.0,
    ) -> None:
        self._load, self._on_failure, self._max_call_s = load, on_failure, max_call_s
        self._changed = threading.Condition()
        self._queue = JobQueue(max_waiting, call_tokens, max_wait_s)
        self._stopping = self._draining = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._loader: threading.Thread | None = None
        self._model: AnsweringModel | None = None
        self._next_model: AnsweringModel | None = None
        self._in_call: list[Slice] = []
        self._call_started: float | None = None
        self._crashes: list[float] = []
        self._state: Literal["loading", "ready", "failed"] = "loading"
        self.metrics = ServiceMetrics(
            self._queue.__len__, self.vision_cache, prompt_cache=self.prompt_cache, queue_age=self._queue.age
        )
        self.generation = 1
        """Counts the models that this service has had."""
        self.detail = ""
        """Why loading failed, this time or at the last exchange; or what broke."""

    @property
    def status(self) -> Status:
        """What the service can do."""
        return "stopping" if self._state == "ready" and (self._draining or self._stopping) else self._state

    @property
    def was_ready(self) -> bool:
        """Whether a model was ever loaded."""
        return self._model is not None

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        with self._changed:
            return not self._in_call and not len(self._queue)

    def start(self) -> None:
        """Start loading the model."""
        self._thread.start()

    def drain(self) -> None:
        """Take nothing new, and go on with what is there."""
        with self._changed:
            self._draining = True

    def stop(self, timeout_s: float = 10.0) -> None:
        """Refuse what is waiting; wait for the call that is running, but not for a model that is still loading."""
        with self._changed:
            self._stopping = True
            waiting = self._queue.take_all()
            self._changed.notify_all()
        for job in waiting:
            job.fail(ListenerBusyError(_STOPPING))
        self._thread.join(timeout_s if self._state == "ready" else 0.1)

    def reload(self, load: Load) -> None:
        """Load another model beside this one, in the background, and let it take over between two calls.

        No request is lost or answered by two models: what was begun is begun again. If the new one cannot be loaded
        the old one goes on, and ``detail`` says why.
        """
        before = self._loader
        self._loader = threading.Thread(target=self._load_next, args=(load, before), name="loader", daemon=True)
        self._loader.start()

    def watch(self) -> None:
        """Give the service up if a call of the model has taken too long: nothing else can end it."""
        started = self._call_started
        if started is not None and time.monotonic() - started > self._max_call_s:
            error = TimeoutError(f"a call of the model took longer than {self._max_call_s:g} s")
            stuck = list(self._in_call)
            self._give_up(error)
            for one in stuck:
                one.job.fail(error)

    def vision_cache(self) -> CacheStatistics | None:
        """How well the model reuses vision features; ``None`` before it is loaded, or if it keeps none."""
        return self._model.vision_cache() if isinstance(self._model, KeepsImages) else None

    def prompt_cache(self) -> CacheStatistics | None:
        """How well it reuses keys and values of photos; ``None`` before it is loaded, or if it keeps none."""
        return self._model.prompt_cache() if isinstance(self._model, KeepsImages) else None

    def serves(self) -> Serves | None:
        """Which model it is; ``None`` before it is loaded, or if it does not say."""
        return getattr(self._model, "serves", None)

    def submit(self, job: Job) -> "Future[list[Any]]":
        """Queue a job.

        Raises:
            ListenerBusyError: If the queue is full or too slow for the job's deadline, or the service is stopping.
        """
        with self._changed:
            if self._stopping or self._draining or self._state == "failed":
                raise ListenerBusyError(_STOPPING)
            self._queue.add(job)
            self._changed.notify()
        return job.future

    def _run(self) -> None:
        if not self._load_first():
            return
        while True:
            try:
                self._serve()
                return
            except BaseException as error:  # noqa: BLE001 - the thread's edge: it goes on, or says that it cannot
                if not self._survives(error):
                    return

    def _load_first(self) -> bool:
        started = time.monotonic()
        try:
            self._model = self._load()
        except BaseException as error:  # noqa: BLE001 - the thread's edge: whatever it is, readyz has to say it
            logger.error("the model cannot be loaded: %s: %s", type(error).__name__, error)
            self._give_up(error)
            return False
        logger.info("model loaded in %.1f s", time.monotonic() - started)
        self._state = "ready"
        return True

    def _load_next(self, load: Load, before: threading.Thread | None) -> None:
        if before is not None:
            before.join()
        try:
            model = load()
        except BaseException as error:  # noqa: BLE001 - the thread's edge: the old model goes on
            self.detail = f"the exchange of the model failed, the old one goes on: {type(error).__name__}: {error}"
            logger.error("%s", self.detail)
            return
        with self._changed:
            self._next_model = model
            self._changed.notify_all()

    def _serve(self) -> None:
        while slices := self._next_call():
            model = self._model
            assert model is not None
            self._answer(model, slices)
            del model
            self._put_back([one.job for one in slices])

    def _next_call(self) -> list[Slice]:
        """Wait for work; take the oldest request, and of the others of its kind what fits in with it."""
        with self._changed:
            while not self._stopping:
                self._exchange()
                for reason, count in self._queue.prune().items():
                    self.metrics.count_dropped(reason, count)
                if slices := self._queue.cut():
                    self._in_call, self._call_started = slices, time.monotonic()
                    return slices
                self._changed.wait()
            return []

    def _exchange(self) -> None:
        if self._next_model is None:
            return
        self._model, self._next_model = self._next_model, None
        self._queue.begin_again()
        self.generation += 1
        self.detail = ""
        logger.info("the model was exchanged; this is the service's number %d", self.generation)

    def _put_back(self, jobs: Sequence[Job]) -> None:
        """Let what is not finished wait for another turn, behind those that came meanwhile."""
        unfinished = [job for job in jobs if not job.future.done()]
        with self._changed:
            self._in_call, self._call_started = [], None
            if not self._stopping and self._state != "failed":
                self._queue.put_back(unfinished)
                return
        for job in unfinished:
            job.fail(ListenerBusyError(_STOPPING))

    def _survives(self, error: BaseException) -> bool:
        """End what was in the broken call; whether the thread can go on."""
        logger.error("the model's thread broke", exc_info=error)
        with self._changed:
            broken, self._in_call, self._call_started = self._in_call, [], None
        for one in broken:
            one.job.fail(RuntimeError(f"the model's thread broke: {type(error).__name__}"))
        now = time.monotonic()
        self._crashes = [*(at for at in self._crashes if now - at < CRASH_WINDOW_S), now]
        if is_fatal(error) or len(self._crashes) > MAX_CRASHES:
            self._give_up(error)
            return False
        self.metrics.count_dropped("crash", len(broken))
        return True

    def _give_up(self, error: BaseException) -> None:
        """Take no more work, and tell whoever can start the service again."""
        with self._changed:
            if self._state == "failed":
                return
            self._state, self.detail = "failed", f"{type(error).__name__}: {error}"
            waiting = self._queue.take_all()
        for job in waiting:
            job.fail(ListenerBusyError("the service has broken down and is ending"))
        self._on_failure(error)

    def _answer(self, model: AnsweringModel, slices: Sequence[Slice]) -> None:
        slices = [one for one in slices if not one.job.future.done()]
        if not slices:
            return
        try:
            answers = self._call(model, slices)
        except Exception as error:  # the worker's edge: the error belongs to the request, not to the thread
            if is_fatal(error):
                raise
            for half in _halves(slices, error):
                self._answer(model, half)
            return
        for one, of_slice in zip(slices, answers, strict=True):
            one.job.take(of_slice)

    def _call(self, model: AnsweringModel, slices: Sequence[Slice]) -> list[list[Any]]:
        """Run the slices' items together, and hand each slice its own answers."""
        kind = slices[0].job.kind
        items = [item for one in slices for item in one.items]
        self.metrics.count_call(kind, sum(one.rows for one in slices))
        calls: dict[Kind, Callable[[Sequence[Any]], list[Any]]] = {
            "score": model.score,
            "choose": model.choose,
            "generate": model.generate,
        }
        started = time.monotonic()
        answers = calls[kind](items)
        if len(answers) != len(items):
            raise RuntimeError(f"the model gave {len(answers)} answers to {len(items)} items")
        self._queue.learn(kind, sum(one.tokens for one in slices), time.monotonic() - started)
        rest = iter(answers)
        return [[next(rest) for _ in one.items] for one in slices]


def is_fatal(error: BaseException) -> bool:
    """Whether the process cannot run the model any more: a GPU's context that broke stays broken."""
    if type(error).__name__ in _NO_MEMORY:
        return False
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)


def _halves(slices: Sequence[Slice], error: Exception) -> list[Sequence[Slice]]:
    """What to try again after a failed call; a request that fails alone gets the error, and nothing is left to try."""
    if len(slices) > 1:
        half = len(slices) // 2
        return [slices[:half], slices[half:]]
    [one] = slices
    if type(error).__name__ in _NO_MEMORY and len(one.items) > 1:
        return [[part] for part in one.halves()]
    known = RuntimeError(repr(error)) if isinstance(error, StopIteration) else error  # a future cannot carry that one
    one.job.fail(known)
    return []
