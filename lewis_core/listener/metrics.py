"""Numbers about a service, in the text format of Prometheus, and one log line a second at most."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable

from lewis_core.listener.schemas import CacheStatistics

logger = logging.getLogger(__name__)
BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper bounds of the latency histogram."""
PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
"""Counted, but not worth a log line."""


class ServiceMetrics:
    """Counters, a latency histogram and a gauge; safe to use from several threads.

    Args:
        queue_length: Asked for the number of waiting requests.
        vision_cache: Asked how well vision features are reused.
        clock: Seconds, monotonic.
        prompt_cache: Asked how well keys and values of images are reused.
        queue_age: Asked for the age of the oldest waiting request, in seconds.
    """

    def __init__(
        self,
        queue_length: Callable[[], int] = lambda: 0,
        vision_cache: Callable[[], CacheStatistics | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        *,
        prompt_cache: Callable[[], CacheStatistics | None] = lambda: None,
        queue_age: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._queue_length, self._clock, self._lock = queue_length, clock, threading.Lock()
        self._caches, self._queue_age = {"vision": vision_cache, "prompt": prompt_cache}, queue_age
        self._requests: Counter[tuple[str, int]] = Counter()
        self._rows: Counter[str] = Counter()
        self._calls: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._buckets = [0] * (len(BUCKETS_S) + 1)
        self._latency_sum = 0.0
        self._logged_at, self._unlogged = clock(), Counter[str]()

    def count_request(self, path: str, status: int, took_s: float) -> None:
        """Count an answered request; every second at most, log what was answered since."""
        with self._lock:
            self._requests[path, status] += 1
            self._latency_sum += took_s
            self._buckets[next((i for i, bound in enumerate(BUCKETS_S) if took_s <= bound), len(BUCKETS_S))] += 1
            if path not in PROBES:
                self._unlogged.update({"requests": 1, "errors": int(status >= 400)})
            line = self._due_line()
        if line:
            logger.info("%s, %d waiting", line, self._queue_length())

    def count_call(self, kind: str, rows: int) -> None:
        """Count one call of the model, and the pairs, questions or completions in it."""
        with self._lock:
            self._calls[kind] += 1
            self._rows[kind] += rows
            self._unlogged[f"rows of {kind}"] += rows

    def count_dropped(self, reason: str, count: int) -> None:
        """Count requests that were let in and then dropped: ``given_up``, ``deadline``, ``age`` or ``crash``."""
        with self._lock:
            self._dropped[reason] += count

    def render(self) -> str:
        """All numbers, as Prometheus reads them."""
        with self._lock:
            lines = [
                "# TYPE lewis_requests_total counter",
                *(
                    f'lewis_requests_total{{path="{path}",status="{status}"}} {count}'
                    for (path, status), count in sorted(self._requests.items())
                ),
                "# TYPE lewis_errors_total counter",
                f"lewis_errors_total {sum(n for (_, status), n in self._requests.items() if status >= 400)}",
                "# TYPE lewis_rows_total counter",
                *(f'lewis_rows_total{{kind="{kind}"}} {count}' for kind, count in sorted(self._rows.items())),
                "# TYPE lewis_model_calls_total counter",
                *(f'lewis_model_calls_total{{kind="{kind}"}} {count}' for kind, count in sorted(self._calls.items())),
                "# TYPE lewis_queue_length gauge",
                f"lewis_queue_length {self._queue_length()}",
                "# TYPE lewis_queue_age_seconds gauge",
                f"lewis_queue_age_seconds {self._queue_age():.3f}",
                "# TYPE lewis_dropped_total counter",
                *(f'lewis_dropped_total{{reason="{reason}"}} {n}' for reason, n in sorted(self._dropped.items())),
                *(line for name, ask in self._caches.items() if (cache := ask()) for line in _cache_lines(name, cache)),
                *self._histogram(),
            ]
        return "\n".join(lines) + "\n"

    def _histogram(self) -> list[str]:
        lines, below = ["# TYPE lewis_request_seconds histogram"], 0
        for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), self._buckets, strict=True):
            below += count
            lines.append(f'lewis_request_seconds_bucket{{le="{bound}"}} {below}')
        return [*lines, f"lewis_request_seconds_sum {self._latency_sum:.6f}", f"lewis_request_seconds_count {below}"]

    def _due_line(self) -> str | None:
        now = self._clock()
        if now - self._logged_at < 1 or not self._unlogged:
            return None
        line = ", ".join(f"{count} {what}" for what, count in self._unlogged.items() if count or what == "errors")
        line = f"{line} in the last {now - self._logged_at:.1f} s"
        self._logged_at, self._unlogged = now, Counter()
        return line


def _cache_lines(name: str, cache: CacheStatistics) -> list[str]:
    lines = []
    for counter in ("hits", "misses", "evictions"):
        lines.append(f"# TYPE lewis_{name}_cache_{counter}_total counter")
        lines.append(f"lewis_{name}_cache_{counter}_total {getattr(cache, counter)}")
    gauges = {"hit_rate": f"{cache.hit_rate:.6f}", "bytes": cache.num_bytes, "max_bytes": cache.max_bytes}
    for gauge, value in {**gauges, "images": cache.entries}.items():
        lines += [f"# TYPE lewis_{name}_cache_{gauge} gauge", f"lewis_{name}_cache_{gauge} {value}"]
    return lines
