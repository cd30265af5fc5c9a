"""Numbers of a run for Prometheus: a text file for the node exporter, or a small server of its own, or neither."""

import contextlib
import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

from lewis_core.config.pipeline import MonitoringConfig

logger = logging.getLogger(__name__)
WRITE_EVERY_S = 5.0


class RunGauges:
    """What stages report while they run: newest metrics, step, progress.

    Args:
        config: Where it goes; by default nowhere.
        run: Name in the settings.
        run_id: The flow run's id.
        flow: Name of the flow.
    """

    def __init__(self, config: MonitoringConfig, run: str, run_id: str, flow: str) -> None:
        self._labels = (run, run_id)
        self._closing = contextlib.ExitStack()
        self._lock, self._written = threading.Lock(), 0.0
        self._file = config.textfile_dir / f"lewis-{run_id}.prom" if config.textfile_dir is not None else None
        self.is_used = config.textfile_dir is not None or config.port is not None
        if not self.is_used:
            return
        from prometheus_client import CollectorRegistry, Gauge

        self._registry = CollectorRegistry()

        def gauge(name: str, text: str, *labels: str) -> Any:
            return Gauge(name, text, ["run", "run_id", *labels], registry=self._registry)

        self._metric = gauge("lewis_stage_metric", "Newest value of what a stage reports", "stage", "label", "metric")
        self._step = gauge("lewis_stage_step", "Step of the newest values", "stage", "label")
        self._done = gauge("lewis_stage_done", "Units done", "stage", "label", "unit")
        self._total = gauge("lewis_stage_total", "Units in all", "stage", "label", "unit")
        self._updated = gauge("lewis_stage_updated_seconds", "When a stage last reported, Unix time", "stage", "label")
        self._seconds = gauge("lewis_stage_seconds", "How long a computed stage took", "stage", "label")
        gauge("lewis_run_info", "A run that is under way", "flow").labels(*self._labels, flow).set(1)
        self._open(config)

    def _open(self, config: MonitoringConfig) -> None:
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._closing.callback(self._file.unlink, missing_ok=True)
            self._write(is_due=True)
        if config.port is None:
            return
        from prometheus_client import start_http_server

        try:
            server, thread = start_http_server(config.port, config.host, self._registry)
        except OSError as error:
            logger.warning("no metrics at %s:%d: %s; the run goes on", config.host, config.port, error.strerror)
            return
        self._closing.callback(thread.join, 5)
        self._closing.callback(server.server_close)
        self._closing.callback(server.shutdown)

    def metrics(self, stage: str, label: str, metrics: Mapping[str, float], step: int | None) -> None:
        """Take numbers at a step."""
        if not self.is_used:
            return
        for name, value in metrics.items():
            self._metric.labels(*self._labels, stage, label, name).set(value)
        if step is not None:
            self._step.labels(*self._labels, stage, label).set(step)
        self._touch(stage, label)

    def progress(self, stage: str, label: str, done: int, total: int, unit: str) -> None:
        """Take how far a stage is."""
        if not self.is_used:
            return
        self._done.labels(*self._labels, stage, label, unit).set(done)
        self._total.labels(*self._labels, stage, label, unit).set(total)
        self._touch(stage, label)

    def finished(self, stage: str, label: str, wall_s: float) -> None:
        """Take how long a stage took."""
        if self.is_used:
            self._seconds.labels(*self._labels, stage, label).set(wall_s)
            self._write(is_due=True)

    def _touch(self, stage: str, label: str) -> None:
        self._updated.labels(*self._labels, stage, label).set(time.time())
        self._write(is_due=time.monotonic() - self._written > WRITE_EVERY_S)

    def _write(self, is_due: bool) -> None:
        if self._file is None or not is_due:
            return
        from prometheus_client import write_to_textfile

        with self._lock:
            self._written = time.monotonic()
            try:
                write_to_textfile(str(self._file), self._registry)  # writes beside it and renames
            except OSError as error:
                logger.warning("metrics cannot be written to %s: %s; the run goes on", self._file, error.strerror)
                self._file = None

    def close(self) -> None:
        """Stop the server and remove the file: a run that is over has no newest values."""
        self._closing.close()
