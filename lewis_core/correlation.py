"""One id for everything that happens because of one run: it is in log lines, and in the requests that services get.

A process works for one run at most. Whoever starts it says which (``tasks.launch``, ``lewis_core.listener --run-id``);
a process that was not told works for nobody, and makes up ids where it needs them.
"""

import itertools
import json
import logging
import threading
import time
import uuid
from typing import Any, Literal

LogFormat = Literal["text", "json"]
TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_run: dict[str, str] = {}
_count, _lock = itertools.count(1), threading.Lock()


def set_run(run_id: str, **fields: str) -> None:
    """Say which run this process works for.

    Args:
        run_id: The run's id; empty for none.
        fields: What else belongs into every structured log line, e.g. ``stage``.
    """
    _run.clear()
    _run.update({name: value for name, value in {"run_id": run_id, **fields}.items() if value})


def run_id() -> str:
    """The run that this process works for; empty if it was not told."""
    return _run.get("run_id", "")


def new_request_id() -> str:
    """Name for one request: the run's id and a number, or something unique."""
    if not run_id():
        return uuid.uuid4().hex[:16]
    with _lock:
        return f"{run_id()}.{_process}.{next(_count)}"


_process = uuid.uuid4().hex[:4]
"""Tells requests of several processes of one run apart."""


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, run, and where an error came from."""

    def __init__(self, **fields: str) -> None:
        super().__init__()
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        """Make the line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **(self._fields or _run),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def log_formatter(log_format: LogFormat) -> logging.Formatter:
    """Formatter of a child process' log."""
    return JsonLines() if log_format == "json" else logging.Formatter(TEXT, datefmt="%H:%M:%S")
