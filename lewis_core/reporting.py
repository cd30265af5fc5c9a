"""Numbers, files and progress leave the core through a Reporter; nobody here knows MLflow or Prefect.

A stage in a child process writes events as JSON lines to its standard output (:class:`StreamReporter`); the
process that started it turns them into tracked metrics and progress bars. Lines that are not events are log text.
"""

import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO, TypeVar, runtime_checkable

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
EVENT_PREFIX = "\x1elewis "


@runtime_checkable
class Reporter(Protocol):
    """Sink for what a stage wants known while it runs; called in the main process of a stage only."""

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record, once, what the stage was asked to do."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record numbers at a step, or for the whole stage."""

    def log_artifact(self, path: Path) -> None:
        """Keep a file with the run."""

    def log_table(self, name: str, rows: Sequence[Mapping[str, object]], step: int | None = None) -> None:
        """Keep a table, e.g. sample completions with their rewards."""

    def progress(self, done: int, total: int, unit: str) -> None:
        """Say how far the stage is."""


class NullReporter:
    """Drops everything."""

    def log_params(self, params: Mapping[str, object]) -> None:
        """Drop."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Drop."""

    def log_artifact(self, path: Path) -> None:
        """Drop."""

    def log_table(self, name: str, rows: Sequence[Mapping[str, object]], step: int | None = None) -> None:
        """Drop."""

    def progress(self, done: int, total: int, unit: str) -> None:
        """Drop."""


class StreamReporter:
    """Writes each call as one JSON line, by default to standard output.

    Args:
        stream: Where lines go; flushed after each.
        prefix: Marks event lines among ordinary log lines; empty for a plain JSONL file.
    """

    def __init__(self, stream: TextIO | None = None, prefix: str = EVENT_PREFIX) -> None:
        self._stream, self._prefix = stream, prefix

    def _emit(self, event: str, **fields: Any) -> None:
        line = json.dumps({"event": event, "time": time.time(), **fields}, default=str)
        stream = self._stream if self._stream is not None else sys.stdout
        stream.write(f"{self._prefix}{line}\n")
        stream.flush()

    def log_params(self, params: Mapping[str, object]) -> None:
        """Emit ``params``."""
        self._emit("params", params=dict(params))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Emit ``metrics``."""
        self._emit("metrics", metrics={name: float(value) for name, value in metrics.items()}, step=step)

    def log_artifact(self, path: Path) -> None:
        """Emit ``artifact``."""
        self._emit("artifact", path=str(path))

    def log_table(self, name: str, rows: Sequence[Mapping[str, object]], step: int | None = None) -> None:
        """Emit ``table``."""
        self._emit("table", name=name, rows=[dict(row) for row in rows], step=step)

    def progress(self, done: int, total: int, unit: str) -> None:
        """Emit ``progress``."""
        self._emit("progress", done=done, total=total, unit=unit)


def parse_event(line: str) -> dict[str, Any] | None:
    """Read a line of a child process: the event it carries, or ``None`` for log text."""
    if not line.startswith(EVENT_PREFIX):
        return None
    try:
        event = json.loads(line[len(EVENT_PREFIX) :])
    except json.JSONDecodeError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


def track(items: Iterable[Item], total: int, unit: str, reporter: Reporter, every_s: float = 2.0) -> Iterator[Item]:
    """Iterate and report progress with rate and remaining time.

    Args:
        items: What is iterated.
        total: How many there are.
        unit: What they are, plural, e.g. ``images``.
        reporter: Receives ``progress``; a log line is written as well.
        every_s: Seconds between reports; the last item is always reported.

    Yields:
        The items.
    """
    start = last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if done == total or now - last >= every_s:
            last = now
            rate = done / max(now - start, 1e-9)
            logger.info("%d/%d %s, %.1f/s, %.0f s left", done, total, unit, rate, (total - done) / rate)
            reporter.progress(done, total, unit)
