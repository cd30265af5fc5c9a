"""Which of several replicas is asked next: each in its turn; one that keeps failing has a rest (a circuit breaker).

After :data:`FAILURES` failures in a row a replica is left alone for a while, twice as long each time. Then one request
tries it: if that is answered it is a replica like the others again.
"""

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

FAILURES = 3
"""In a row, until a replica is left alone."""
REST_S, MAX_REST_S = 1.0, 30.0
"""First and longest rest."""


@dataclass
class _State:
    url: str
    failures: int = 0
    rests: int = 0
    open_until: float = 0.0
    is_tried: bool = False


class Replicas:
    """Addresses of one model, and how they have behaved. Safe to use from several threads.

    Args:
        urls: The addresses, at least one.
        clock: Seconds, monotonic: jumps of the system's time do not matter.
    """

    def __init__(self, urls: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._states = [_State(url) for url in urls]
        self._clock, self._lock, self._turn = clock, threading.Lock(), 0

    def __len__(self) -> int:
        return len(self._states)

    @property
    def urls(self) -> list[str]:
        """All addresses."""
        return [state.url for state in self._states]

    def next(self, avoid: Collection[str] = ()) -> str:
        """Choose an address: the next in turn that is no rest's, and was not asked in vain just now.

        If all have a rest, the one whose rest ends first is chosen all the same: asking costs less than giving up.

        Args:
            avoid: Addresses that have just failed this request.
        """
        with self._lock:
            now, count = self._clock(), len(self._states)
            self._turn += 1
            order = [self._states[(self._turn + offset) % count] for offset in range(count)]
            usable = [state for state in order if self._is_usable(state, now)]
            fresh = [state for state in usable if state.url not in avoid]
            chosen = (fresh or usable or [min(order, key=lambda state: state.open_until)])[0]
            chosen.is_tried = chosen.open_until > 0
            return chosen.url

    def succeeded(self, url: str) -> None:
        """An address has answered: whatever it said, somebody is there."""
        with self._lock:
            state = self._of(url)
            state.failures = state.rests = 0
            state.open_until, state.is_tried = 0.0, False

    def failed(self, url: str) -> None:
        """Nobody has answered at an address."""
        with self._lock:
            state = self._of(url)
            state.failures, state.is_tried = state.failures + 1, False
            if state.failures >= FAILURES:
                state.open_until = self._clock() + min(MAX_REST_S, REST_S * 2.0 ** min(state.rests, 10))
                state.rests += 1

    def resting(self) -> list[str]:
        """Addresses that are left alone now."""
        with self._lock:
            now = self._clock()
            return [state.url for state in self._states if state.open_until > now]

    def _is_usable(self, state: _State, now: float) -> bool:
        return state.open_until <= now and not (state.open_until > 0 and state.is_tried)

    def _of(self, url: str) -> _State:
        return next(state for state in self._states if state.url == url)
