"""What a stage says while it runs becomes log lines, a progress bar in Prefect and numbers in MLflow."""

import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from lewis_core import errors
from lewis_core.errors import LewisError
from lewis_core.reporting import parse_event
from tasks.prometheus import RunGauges
from tasks.tracking import StageTracker

CORE_LINE = re.compile(r"^\d\d:\d\d:\d\d (INFO|WARNING|ERROR) (?:lewis_core|tasks)\S*: (.*)$")
LOG_EVERY_S, ARTIFACT_EVERY_S = 5.0, 10.0


def slug(text: str) -> str:
    """Lower case, digits and dashes only: what Prefect takes as an artifact's key."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def clock(seconds: float) -> str:
    """Seconds as ``m:ss``, or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """A bar: log lines with rate and remaining time, and a Prefect artifact, both at a bearable pace."""

    def __init__(self, title: str, log: "logging.Logger | logging.LoggerAdapter[Any]") -> None:
        self._title, self._log = title, log
        self._first: tuple[float, int] | None = None
        self._logged = self._shown = time.monotonic()
        self._artifact: UUID | None = None

    def update(self, done: int, total: int, unit: str) -> None:
        """Show how far the stage is."""
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done)
        is_last = done >= total
        if now - self._logged >= LOG_EVERY_S or is_last:
            self._logged = now
            self._log.info("%s: %d/%d %s%s", self._title, done, total, unit, self._pace(now, done, total))
        if now - self._shown >= ARTIFACT_EVERY_S or (is_last and self._artifact):
            self._shown = now
            self._show(100.0 * done / max(total, 1))

    def _pace(self, now: float, done: int, total: int) -> str:
        started, first = self._first or (now, done)
        if done <= first or now - started < 1:
            return ""
        rate = (done - first) / (now - started)
        speed = f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each"
        return f", {speed}, {clock((total - done) / rate)} left"

    def _show(self, percent: float) -> None:
        try:
            if self._artifact is None:
                made = create_progress_artifact(progress=percent, key=slug(self._title), description=self._title)
                self._artifact = made if isinstance(made, UUID) else None
            else:
                update_progress_artifact(artifact_id=self._artifact, progress=percent)
        except Exception as error:  # noqa: BLE001 - a bar that cannot be drawn must not end a stage
            self._log.debug("progress artifact: %s", error)


def core_line(line: str) -> tuple[int, str] | None:
    """Level and text of a log line that our own code wrote, in either form; ``None`` for other output."""
    if match := CORE_LINE.match(line):
        return logging.getLevelNamesMapping()[match[1]], match[2]
    if not line.startswith('{"time"'):
        return None
    try:
        found = json.loads(line)
        level = logging.getLevelNamesMapping()[found["level"]]
        is_ours = level >= logging.INFO and str(found["logger"]).startswith(("lewis_core", "tasks"))
    except (ValueError, LookupError):
        return None
    return (level, str(found["message"])) if is_ours else None


@dataclass(frozen=True)
class Gauged:
    """A stage among the numbers of its run."""

    run: RunGauges
    stage: str
    label: str


class StageEvents:
    """A :class:`~lewis_core.reporting.Reporter` for stages in this process, and the reader of a child's lines.

    Args:
        title: Stage and what it is about, e.g. ``describe-concepts base``.
        log: Logger of the task run.
        tracked: The stage's MLflow run.
        gauged: The stage's numbers for Prometheus.
    """

    def __init__(
        self, title: str, log: "logging.Logger | logging.LoggerAdapter[Any]", tracked: StageTracker, gauged: "Gauged"
    ) -> None:
        self._title, self._log, self._tracked, self._gauged = title, log, tracked, gauged
        self._progress = Progress(title, log)
        self.failure: LewisError | None = None
        """The error that a child process reported."""
        self.has_started = False
        """Whether a child process has said that it runs."""
        self.has_crashed = False
        """Whether a child process has said that an unexpected error ends it."""
        self._artifacts: list[Path] = []

    def handle_line(self, line: str) -> None:
        """Take a line of a child process: an event, or log text."""
        if event := parse_event(line):
            self.handle(event)
        elif found := core_line(line):
            self._log.log(found[0], "%s: %s", self._title, found[1])

    def handle(self, event: Mapping[str, Any]) -> None:
        """Take an event."""
        match event["event"]:
            case "params":
                self.log_params(event["params"])
            case "metrics":
                self.log_metrics(event["metrics"], event.get("step"))
            case "table":
                self.log_table(event["name"], event["rows"], event.get("step"))
            case "artifact":
                self.log_artifact(Path(event["path"]))
            case "progress":
                self.progress(event["done"], event["total"], event["unit"])
            case "started":
                self.has_started = True
            case "crash":
                self.has_crashed = True
            case "failure":
                self.failure = rebuild_error(event["error"], event["message"])

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record settings."""
        self._tracked.params(params)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record numbers."""
        self._tracked.metrics(metrics, step)
        self._gauged.run.metrics(self._gauged.stage, self._gauged.label, metrics, step)

    def log_artifact(self, path: Path) -> None:
        """Keep a file: at once, unless it lies in a folder that will be renamed when the stage is done."""
        if any(part.startswith(".building-") for part in path.parts):
            self._artifacts.append(path)
        elif path.exists():
            self._tracked.artifact(path, path.parent.name)

    def finish(self, published: Path) -> None:
        """Keep the files that the stage named, from where they lie now."""
        for path in self._artifacts:
            parts = next(
                (path.parts[at + 1 :] for at, part in enumerate(path.parts) if part.startswith(".building-")), ()
            )
            self._tracked.artifact(published.joinpath(*parts) if parts else path)

    def log_table(self, name: str, rows: Sequence[Mapping[str, object]], step: int | None = None) -> None:
        """Keep a table."""
        self._tracked.table(name, rows, step)

    def progress(self, done: int, total: int, unit: str) -> None:
        """Show how far the stage is."""
        self._progress.update(done, total, unit)
        self._gauged.run.progress(self._gauged.stage, self._gauged.label, done, total, unit)


def rebuild_error(name: str, message: str) -> LewisError:
    """Make the error again that ended a child process; its class decides about retries."""
    kind = getattr(errors, name, LewisError)
    if not (isinstance(kind, type) and issubclass(kind, LewisError)) or "__init__" in vars(kind):
        return LewisError(message)
    return kind(message)
