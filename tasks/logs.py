"""What a person sees in the log: our own packages at INFO, and errors made for people without a traceback."""

import contextlib
import copy
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from lewis_core.correlation import JsonLines, LogFormat, log_formatter
from lewis_core.errors import LewisError

OWN = ("lewis_core", "tasks", "flows")
CHATTY = ("lewis_core.reporting", "httpx", "httpcore", "alembic")
"""Progress of stages in this process is shown by :mod:`tasks.events`; the others say nothing of interest."""
REPEATING = ("mlflow.store.db.utils", "urllib3.connectionpool")
"""They tell every try of what :mod:`tasks.tracking` says once, some with pages of SQL."""
logger = logging.getLogger(__name__)
_DETAILS = "details"
"""Attribute of a log record: the error whose traceback was dropped."""
ENGINES = ("prefect.flow_runs", "prefect.task_runs", "prefect.flow_engine", "prefect.task_engine")


class OneLine(logging.Filter):
    """Drops the traceback of errors that are meant to be read by a person; their text says what to do."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep the record, without the traceback, which only the run's log has."""
        error = error_of(record)
        if isinstance(error, LewisError):
            setattr(record, _DETAILS, record.exc_info)
            record.msg, record.args = f"{type(error).__name__}: {error}", ()
            record.exc_info = record.exc_text = None
        return True


def error_of(record: logging.LogRecord) -> BaseException | None:
    """The error that a record is about, whether its traceback is shown or not."""
    found = vars(record).get(_DETAILS) or record.exc_info
    return found[1] if isinstance(found, tuple) else None


class RunLog(logging.FileHandler):
    """A file of everything that is logged during a run, with all tracebacks.

    If it cannot be written any more, that is said once: the run goes on, or says itself what a full disk kept it from.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record."""
        if self._is_lost:
            return
        if details := vars(record).get(_DETAILS):
            record = copy.copy(record)
            record.exc_info = details
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        """Give the file up; closing it later must not try to write what is left."""
        self._is_lost, stream, self.stream = True, self.stream, None
        logger.warning("the run's log %s cannot be written: %s", self.baseFilename, sys.exc_info()[1])
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()

    _is_lost = False


@contextlib.contextmanager
def run_log(folder: Path, run_id: str, log_format: LogFormat) -> Iterator[None]:
    """Write a log of the whole run, in text or one JSON object a line with the run's id.

    An error that ends the body is written with its traceback, and gets a note that says where.
    """
    folder.mkdir(parents=True, exist_ok=True)
    is_json = log_format == "json"
    handler = RunLog(folder / f"run-{run_id}.{'jsonl' if is_json else 'log'}", encoding="utf-8")
    handler.setFormatter(JsonLines(run_id=run_id) if is_json else log_formatter("text"))
    loggers = [logging.getLogger(name) for name in (*OWN, "prefect.flow_runs", "prefect.task_runs")]
    for each in loggers:
        each.addHandler(handler)
    try:
        yield
    except BaseException as error:
        level, at = logging.ERROR if isinstance(error, Exception) else logging.INFO, sys.exc_info()
        handler.handle(logger.makeRecord(logger.name, level, __file__, 0, "what ended the run:", (), at))
        error.add_note(f"details: {handler.baseFilename}")
        raise
    finally:
        for each in loggers:
            each.removeHandler(handler)
        handler.close()


def arrange_logs() -> None:
    """Set levels and filters; calling it again changes nothing."""
    for name in OWN:
        logging.getLogger(name).setLevel(logging.INFO)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in REPEATING:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for name in ENGINES:
        engine = logging.getLogger(name)
        if not any(isinstance(known, OneLine) for known in engine.filters):
            engine.addFilter(OneLine())
