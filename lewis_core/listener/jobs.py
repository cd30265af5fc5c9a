"""What waits for the model: each request's work, and the queue it waits in.

The queue is bounded by length and by time. A request is refused when it comes if its turn would come too late, at the
pace of the last calls: refusing early is what keeps an overloaded service useful to those it has let in.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

from lewis_core.errors import ListenerBusyError, ListenerDeadlineError

Kind = Literal["score", "choose", "generate"]
MAX_RETRY_AFTER_S = 30.0
CAUTION = 1.5
"""A request is let in if its answer would be in time even if the model were slower by this factor."""
_SMOOTHING = 0.3
"""Weight of the newest call in the pace."""


@dataclass(eq=False)
class Job:
    """One request's work for the model."""

    kind: Kind
    items: Sequence[Any]
    """Games, choice items or generate items."""
    rows: Sequence[int]
    """Pairs, questions or completions of each item."""
    tokens: Sequence[int]
    """About how many tokens each item costs."""
    deadline: float = math.inf
    """Monotonic time after which nobody wants the answer."""
    answers: list[Any] = field(default_factory=list)
    """Those of the first items, as far as it is done."""
    future: "Future[list[Any]]" = field(default_factory=Future)
    queued_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if not len(self.items) == len(self.rows) == len(self.tokens) > 0:
            raise ValueError("a job needs at least one item, and of each its rows and tokens")
        self.tokens_left = sum(self.tokens)
        """About how many tokens are still to be computed."""

    def take(self, answers: Sequence[Any]) -> None:
        """Take the answers of the next items; the last ones finish the job."""
        if self.future.done():
            return
        done = len(self.answers)
        self.tokens_left -= sum(self.tokens[done : done + len(answers)])
        self.answers.extend(answers)
        if len(self.answers) == len(self.items) and self.future.set_running_or_notify_cancel():
            self.future.set_result(self.answers)

    def fail(self, error: BaseException) -> None:
        """End the job with an error, unless it has ended or was given up."""
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def begin_again(self) -> None:
        """Forget the answers there are: another model will give all of them."""
        self.answers.clear()
        self.tokens_left, self.queued_at = sum(self.tokens), time.monotonic()


@dataclass(frozen=True)
class Slice:
    """Some items of a job, the first of which is the next to be answered when its turn comes."""

    job: Job
    start: int
    stop: int

    @property
    def items(self) -> Sequence[Any]:
        """The items."""
        return self.job.items[self.start : self.stop]

    @property
    def rows(self) -> int:
        """Their pairs, questions or completions."""
        return sum(self.job.rows[self.start : self.stop])

    @property
    def tokens(self) -> int:
        """About how many tokens they cost."""
        return sum(self.job.tokens[self.start : self.stop])

    def halves(self) -> "tuple[Slice, Slice]":
        """The slice in two."""
        middle = (self.start + self.stop) // 2
        return Slice(self.job, self.start, middle), Slice(self.job, middle, self.stop)


class JobQueue:
    """Jobs in the order in which they are served. Not safe without the worker's lock, except for what only reads.

    Args:
        max_waiting: Jobs that may wait.
        call_tokens: Tokens of one call of the model, about.
        max_wait_s: Longest wait for a turn.
    """

    def __init__(self, max_waiting: int, call_tokens: int, max_wait_s: float) -> None:
        self._max_waiting, self._call_tokens, self._max_wait_s = max_waiting, call_tokens, max_wait_s
        self._waiting: deque[Job] = deque()
        self._pace: dict[Kind, float] = {}
        self._call_ends = 0.0
        self._dropped: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._waiting)

    def age(self) -> float:
        """Seconds that the oldest job has waited or been worked on."""
        jobs = tuple(self._waiting)
        return time.monotonic() - min(job.queued_at for job in jobs) if jobs else 0.0

    def add(self, job: Job) -> None:
        """Let a job wait.

        Raises:
            ListenerBusyError: If too many wait, or its turn would come too late.
        """
        if len(self._waiting) >= self._max_waiting:
            self._drop_given_up()
        wait_s = self.expected_wait_s()
        if len(self._waiting) >= self._max_waiting:
            raise busy(f"{len(self._waiting)} requests are waiting already", wait_s)
        own_s = job.tokens_left * self._pace.get(job.kind, 0.0)
        needed_s = CAUTION * (wait_s + own_s)
        if wait_s and (wait_s > self._max_wait_s or needed_s > job.deadline - time.monotonic()):
            raise busy(f"about {wait_s:.1f} s of work are waiting already, too much for this request", wait_s)
        self._waiting.append(job)

    def expected_wait_s(self) -> float:
        """Seconds until what is computed and what waits now is done, about, from the pace of the last calls.

        It is 0 when nothing is there, so that somebody is let in even if the last calls were slow, and the pace is
        learnt again.
        """
        current_s = max(0.0, self._call_ends - time.monotonic())
        return current_s + sum(job.tokens_left * self._pace.get(job.kind, 0.0) for job in self._waiting)

    def learn(self, kind: Kind, tokens: int, seconds: float) -> None:
        """Take a call of the model into the pace."""
        pace = seconds / max(1, tokens)
        self._call_ends = 0.0
        self._pace[kind] = pace + (1 - _SMOOTHING) * (self._pace.get(kind, pace) - pace)

    def prune(self) -> Counter[str]:
        """Drop what nobody waits for, and what has waited too long; returns how many were dropped, by reason."""
        now = time.monotonic()
        self._drop_given_up()
        for job in list(self._waiting):
            waited = now - job.queued_at
            if now >= job.deadline:
                self._drop(job, "deadline")
                job.fail(ListenerDeadlineError(f"the answer was not ready after {waited:.1f} s"))
            elif not job.answers and waited > self._max_wait_s:
                self._drop(job, "age")
                job.fail(busy(f"the request waited for {waited:.1f} s without having its turn", self._max_wait_s))
        found, self._dropped = self._dropped, Counter()
        return found

    def cut(self) -> list[Slice]:
        """Take what the next call answers out of the queue."""
        slices: list[Slice] = []
        left = self._call_tokens
        for job in list(self._waiting):
            start = stop = len(job.answers)
            if job.kind != self._waiting[0].kind:
                continue
            while stop < len(job.items) and (job.tokens[stop] <= left or not (slices or stop > start)):
                left -= job.tokens[stop]
                stop += 1
            if stop > start:
                slices.append(Slice(job, start, stop))
        for one in slices:
            self._waiting.remove(one.job)
        if slices:
            pace = self._pace.get(slices[0].job.kind, 0.0)
            self._call_ends = time.monotonic() + pace * sum(one.tokens for one in slices)
        return slices

    def put_back(self, jobs: Iterable[Job]) -> None:
        """Let jobs wait for another turn."""
        self._waiting.extend(jobs)

    def take_all(self) -> list[Job]:
        """Empty the queue."""
        jobs = list(self._waiting)
        self._waiting.clear()
        return jobs

    def begin_again(self) -> None:
        """Make all waiting jobs forget the answers that they have."""
        for job in self._waiting:
            job.begin_again()

    def _drop_given_up(self) -> None:
        for job in [job for job in self._waiting if job.future.cancelled()]:
            self._drop(job, "given_up")

    def _drop(self, job: Job, reason: str) -> None:
        self._waiting.remove(job)
        self._dropped[reason] += 1


def busy(message: str, wait_s: float) -> ListenerBusyError:
    """A refusal that says when it may be worth asking again: when about half of the work is done."""
    error = ListenerBusyError(message)
    error.retry_after_s = min(MAX_RETRY_AFTER_S, max(1.0, math.ceil(wait_s / 2)))
    return error
