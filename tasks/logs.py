"""What a person sees in the log: our own packages at INFO, and errors made for people without a traceback."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from lewis_core.correlation import JsonLines, LogFormat
from lewis_core.errors import LewisError

OWN = ("lewis_core", "tasks", "flows")
CHATTY = ("lewis_core.reporting", "httpx", "httpcore", "alembic", "mlflow.store.db.utils")
"""Progress of stages in this process is shown by :mod:`tasks.events`; the others say nothing of interest."""
ENGINES = ("prefect.flow_runs", "prefect.task_runs", "prefect.flow_engine", "prefect.task_engine")


class OneLine(logging.Filter):
    """Drops the traceback of errors that are meant to be read by a person; their text says what to do."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep the record, without the traceback."""
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if isinstance(error, LewisError):
            record.msg, record.args = f"{type(error).__name__}: {error}", ()
            record.exc_info = record.exc_text = None
        return True


@contextlib.contextmanager
def run_log(folder: Path, run_id: str, log_format: LogFormat) -> Iterator[None]:
    """Write a log of the whole run, one JSON object a line with the run's id, if logs are to have that form."""
    if log_format != "json":
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / f"run-{run_id}.jsonl", encoding="utf-8")
    handler.setFormatter(JsonLines(run_id=run_id))
    loggers = [logging.getLogger(name) for name in (*OWN, "prefect.flow_runs", "prefect.task_runs")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()


def arrange_logs() -> None:
    """Set levels and filters; calling it again changes nothing."""
    for name in OWN:
        logging.getLogger(name).setLevel(logging.INFO)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ENGINES:
        engine = logging.getLogger(name)
        if not any(isinstance(known, OneLine) for known in engine.filters):
            engine.addFilter(OneLine())
