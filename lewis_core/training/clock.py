"""Where the time of a training step goes."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

TIMINGS = ("seconds/", "tokens_per_s/", "share/", "latency/", "gpu/")
"""Beginnings of the names of what was measured, in which equal runs differ."""
PARTS_OF_SHARE = ("rollout", "listener_wait", "reference", "update", "meeting", "held_out")
"""Parts of a step whose share of its time is told."""


class StepClock:
    """Sums seconds, and tokens worked on, by part of the step. Parts that lie inside another count for themselves."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._tokens: defaultdict[str, int] = defaultdict(int)
        self._open: list[float] = []  # for each part that is measured now, the seconds of parts inside it

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Add the block's seconds to a part."""
        started = time.perf_counter()
        self._open.append(0.0)
        try:
            yield
        finally:
            whole = time.perf_counter() - started
            self._seconds[part] += whole - self._open.pop()
            if self._open:
                self._open[-1] += whole

    def count(self, part: str, tokens: int) -> None:
        """Add tokens to a part."""
        self._tokens[part] += tokens

    def take(self) -> dict[str, float]:
        """Return ``seconds/<part>`` and ``tokens_per_s/<part>`` since the last call, and begin anew."""
        found = {f"seconds/{part}": seconds for part, seconds in self._seconds.items()}
        for part, tokens in self._tokens.items():
            if self._seconds[part] > 0:
                found[f"tokens_per_s/{part}"] = tokens / self._seconds[part]
        self._seconds.clear()
        self._tokens.clear()
        return found
