"""MLflow: one run per flow run, one nested run per computed stage.

Nothing here waits for MLflow. Everything is written to a journal and sent by a thread, in order; an outage is said
once, is tried again every while, and never slows or ends a run. What could not be sent stays in the journal, and is
sent by the next run in the work folder or by ``python -m tasks.upload``.
"""

import contextlib
import contextvars
import logging
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from lewis_core.artifacts import ArtifactRef
from lewis_core.config.pipeline import TrackingConfig
from lewis_core.pipeline import TRAIN_LISTENER
from lewis_core.records import JsonObject
from tasks.journal import Journal, left_behind, unended
from tasks.sending import Sender

logger = logging.getLogger(__name__)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 60.0
HASTE_S = 8.0
"""Longest wait for MLflow at the end of a run that is being cancelled."""


def tracking_uri(config: TrackingConfig, work_dir: Path) -> str:
    """Address of the tracking store: from the settings, else MLFLOW_TRACKING_URI, else sqlite in the work folder."""
    return config.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{work_dir.absolute()}/mlflow.db"


class Tracker:
    """Connection to MLflow for one flow run.

    Args:
        config: Where it is.
        work_dir: Folder for the embedded database and the journal.
        name: Name of the flow run.
        tags: Tags of the parent run.
        run_name: Name in the settings, by which events about its checkpoints are told apart.
        on_start: Called in the sending thread once MLflow has the run, with its id there, its address for a browser (or
            nothing), and the tracking URI.
    """

    def __init__(
        self,
        config: TrackingConfig,
        work_dir: Path,
        name: str,
        tags: Mapping[str, str],
        run_name: str = "",
        on_start: Callable[[str | None, str, str], None] = lambda run_id, url, uri: None,
    ) -> None:
        self._config, self._logs = config, work_dir.absolute() / "logs"
        self.uri = tracking_uri(config, work_dir)
        self._journal = Journal.create(self._logs)
        self._on_start = on_start
        self._waiting: deque[JsonObject] = deque()
        self._changed = threading.Condition()
        self._is_closing = self._is_out = self._is_started = False
        self._key = uuid.uuid4().hex
        folder = (work_dir / "mlflow-artifacts").absolute().as_uri() if self.uri.startswith("sqlite") else None
        header = {"uri": self.uri, "experiment": config.experiment, "artifacts": folder, "run_name": run_name}
        self._sender = Sender(self._journal, header)
        self._add("open", **header)
        self._add("start", name=name, parent=None, tags=dict(tags))
        context = contextvars.copy_context()  # so that what it logs and shows belongs to the flow run
        self._thread = threading.Thread(target=context.run, args=(self._send_all,), name="tracking", daemon=True)
        self._thread.start()

    def _add(self, event: str, run: str | None = None, **fields: object) -> None:
        with self._changed:
            self._waiting.append(self._journal.append({"run": run or self._key, "event": event, **fields}))
            self._changed.notify_all()

    def _send_all(self) -> None:
        """Send what is waiting until the run is over; the thread's body."""
        pause_s, is_first = FIRST_PAUSE_S, True
        while (entry := self._next()) is not None:
            try:
                self._sender.send(entry)
            except Exception as error:  # noqa: BLE001 - whatever the tracking server does must not end a run
                self._say_outage(error)
                if self._is_closing:
                    break
                self._rest(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                continue
            pause_s = FIRST_PAUSE_S
            with self._changed:
                self._waiting.popleft()
                self._is_started = self._is_started or entry["event"] == "start"
                if self._is_out:
                    logger.warning("MLflow at %s answers again", self.uri)
                self._is_out = False
                self._changed.notify_all()
            if is_first and entry["event"] == "start":
                is_first = False
                self._on_start(self._sender.ids.get(self._key), self._sender.url(self._key), self.uri)
                upload_journals(self._logs)

    def _next(self) -> JsonObject | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closing)
            return self._waiting[0] if self._waiting else None

    def _rest(self, pause_s: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_closing, pause_s)

    def _say_outage(self, error: Exception) -> None:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0][:300]}" if str(error) else type(error).__name__
        with self._changed:
            if not self._is_out:
                logger.warning(
                    "MLflow at %s cannot be reached (%s); the run goes on, what it says is kept in %s",
                    self.uri,
                    reason,
                    self._journal.path,
                )
            self._is_out = True
            self._changed.notify_all()

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; waits until it has one, or ``None`` in an outage."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_started or self._is_out or self._is_closing)
        return self._sender.ids.get(self._key)

    @contextlib.contextmanager
    def stage(self, name: str, tags: Mapping[str, str]) -> Iterator["StageTracker"]:
        """Track a computed stage as a nested run; it ends as finished, failed or killed like the body."""
        tracked = StageTracker(self, uuid.uuid4().hex, name)
        self._add("start", tracked.key, name=name, parent=self._key, tags=dict(tags))
        status = "KILLED"
        try:
            yield tracked
            status = "FINISHED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            self._add("end", tracked.key, status=status)

    def record(self, key: str, event: str, **fields: object) -> None:
        """Write an entry about a run."""
        self._add(event, key, **fields)

    def end(self, status: str) -> None:
        """End the parent run (``FINISHED``, ``FAILED``, ``KILLED``); waits until all is sent, unless MLflow is away."""
        self._add("end", status=status)
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(HASTE_S if status == "KILLED" else None)
        with self._changed:
            left = len(self._waiting)
        if left:
            logger.warning(
                "%d entries about this run were not sent to MLflow at %s; the next run in this work folder sends them, "
                "or `python -m tasks.upload %s`",
                left,
                self.uri,
                self._logs.parent,
            )
        if not self._thread.is_alive():
            self._journal.close()

    def parent(self) -> "StageTracker":
        """The flow's own run, to log to."""
        return StageTracker(self, self._key, "pipeline")

    def register_adapter(
        self, adapter: ArtifactRef, made_by: str | None, metrics: Mapping[str, float], title: str
    ) -> None:
        """Register a trained adapter as a model with the alias ``candidate``, and tell Prefect that there is one.

        An adapter that was registered before (same content) is not registered again.

        Args:
            adapter: The train-speaker or train-listener artifact.
            made_by: Key of the run that made it, or ``None``.
            metrics: Numbers kept with the model.
            title: What people call it; its version's description and tag ``lewis.name``.
        """
        is_listener = adapter.kind == TRAIN_LISTENER.name
        if name := self._config.registered_listener if is_listener else self._config.registered_model:
            content = adapter.model_dump(mode="json")
            self._add("register", name=name, adapter=content, made_by=made_by, metrics=dict(metrics), title=title)


class StageTracker:
    """One MLflow run.

    Args:
        tracker: Connection.
        key: Our name for the run.
        name: Its title.
    """

    def __init__(self, tracker: Tracker, key: str, name: str) -> None:
        self._tracker, self.key, self._name = tracker, key, name

    def params(self, params: Mapping[str, object]) -> None:
        """Record settings, flattened."""
        self._tracker.record(self.key, "params", params=params)

    def metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record numbers at a step."""
        if metrics:
            self._tracker.record(self.key, "metrics", metrics=dict(metrics), step=step)

    def tags(self, tags: Mapping[str, str]) -> None:
        """Record tags."""
        if tags:
            self._tracker.record(self.key, "tags", tags=dict(tags))

    def table(self, name: str, rows: Sequence[Mapping[str, object]], step: int | None = None) -> None:
        """Keep a table; tables of later steps are kept apart, under the step's number."""
        if rows:
            self._tracker.record(self.key, "table", name=name, rows=list(rows), step=step)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a file or a folder."""
        self._tracker.record(self.key, "artifact", path=str(path), folder=folder)


def upload_journals(folder: Path) -> dict[str, int]:
    """Send what runs that are over could not send; a run that was killed is marked as such.

    Args:
        folder: Folder of journals.

    Returns:
        Entries sent, entries refused, journals that are still not sent to the end.
    """
    counts = {"sent": 0, "refused": 0, "unsent_journals": 0}
    with left_behind(folder) as journals:
        for journal in journals:
            sent, refused, is_done = upload_journal(journal)
            counts["sent"] += sent
            counts["refused"] += refused
            counts["unsent_journals"] += not is_done
            if is_done:
                logger.info("MLflow was told what %s still held: %d entries", journal.path.name, sent)
            else:
                logger.warning("MLflow cannot be told what %s holds; it is kept", journal.path.name)
                break  # the server is away
    return counts


def upload_journal(journal: Journal) -> tuple[int, int, bool]:
    """Send one journal: entries sent, entries refused, whether it is done."""
    for key in unended(journal.entries()):  # its process was killed
        journal.append({"run": key, "event": "end", "status": "KILLED"})
    entries = journal.entries()
    sender, started = Sender(journal, entries[0]), time.monotonic()
    before = sender.sent
    try:
        for entry in entries[sender.sent :]:
            sender.send(entry)
    except Exception as error:  # noqa: BLE001 - an outage: it is kept for another time
        logger.debug("after %.1f s: %s", time.monotonic() - started, error)
        return sender.sent - before, sender.refused, False
    return sender.sent - before, sender.refused, True
