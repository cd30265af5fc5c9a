"""What a person at a terminal reads of a run: its progress, and as the last thing one message about what ended it.

Prefect logs an error where it happens, in the state of the task, and in the log and the state of the flow, each time in
full. All that is in its UI, and with tracebacks in the run's log file; a terminal only shows where it happened.
"""

import contextlib
import copy
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from types import FrameType

from lewis_core.errors import ConfigError, LewisError, ProcessError
from lewis_core.packages import explain_missing
from tasks.logs import ENGINES, error_of
from tasks.processes import is_closing

EXIT_FAILED, EXIT_SETTINGS, EXIT_INTERRUPTED = 1, 2, 130
STOPPED = "stopped, as the run ends"
_BRIEF = "brief"
"""Attribute of a log record: what a terminal shows of it."""


class Brief(logging.Formatter):
    """Formatter and filter of a terminal's handler, which keep back what is said as the last thing.

    Args:
        usual: The handler's own formatter.
    """

    def __init__(self, usual: logging.Formatter) -> None:
        super().__init__()
        self._usual = usual
        self._said: set[str] = set()
        self._failed: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Decide what is shown of a record; whether anything is."""
        text = self._shorten(record) if record.name in ENGINES else record.getMessage()
        setattr(record, _BRIEF, text)
        return text is not None

    def format(self, record: logging.LogRecord) -> str:
        """Make the line, without the traceback of what ends a task or the flow."""
        shown = copy.copy(record)
        shown.msg, shown.args = vars(record)[_BRIEF], ()
        if shown.msg == STOPPED:
            shown.levelno, shown.levelname = logging.INFO, logging.getLevelName(logging.INFO)
        if record.name in ENGINES:
            shown.exc_info = shown.exc_text = None
        return self._usual.format(shown)

    def _shorten(self, record: logging.LogRecord) -> str | None:
        text, error, task = record.getMessage(), error_of(record), str(getattr(record, "task_run_id", ""))
        is_end = text.startswith(("Finished in state Failed", "Finished in state Crashed"))
        if text.startswith(("Crash detected!", "Running hook ", "Hook ")):
            return None
        if error is not None and record.levelno >= logging.ERROR:
            self._failed.add(task)
            return self._failure(error) if task else None
        if is_end:
            if not task or task in self._failed:
                return None
            return STOPPED if is_closing() else text.partition("(")[0]
        return self._without_repeats(record, text)

    def _failure(self, error: BaseException) -> str:
        was_stopped = isinstance(error, ProcessError) and is_closing()
        return STOPPED if was_stopped else f"failed ({type(error).__name__})"

    def _without_repeats(self, record: logging.LogRecord, text: str) -> str:
        """Say an error that is tried to be overcome in full once, and by its kind when it comes again."""
        found = record.args if isinstance(record.args, tuple) else ()
        for error in (value for value in found if isinstance(value, Exception)):
            name = type(error).__name__
            known = f"{name} as before" if str(error) in self._said else f"{name}: {error}"
            self._said.add(str(error))
            text = text.replace(repr(error), known)
        return text


@contextlib.contextmanager
def brief_logs() -> Iterator[None]:
    """Let Prefect's handlers for terminals keep back what is said as the last thing; files and the API get all."""
    from prefect.logging.handlers import PrefectConsoleHandler

    changed = []
    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler):
            usual = handler.formatter
            brief = Brief(usual or logging.Formatter())
            handler.setFormatter(brief)
            handler.addFilter(brief.filter)
            changed.append((handler, usual, brief.filter))
    try:
        yield
    finally:
        for handler, usual, added in changed:
            handler.setFormatter(usual)
            handler.removeFilter(added)


class Stopping:
    """Unwinds the program on Ctrl-C and SIGTERM, so that every process is ended, and remembers what asked for it."""

    def __init__(self) -> None:
        self.signals: list[int] = []

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Take the signals; Ctrl-C only if it was not ignored, as it is in a shell's background."""
        numbers = [signal.SIGTERM]
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            numbers.append(signal.SIGINT)
        before = {number: signal.signal(number, self._stop) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        self.signals.append(number)
        if number == signal.SIGINT and len(self.signals) == 1:
            os.write(2, b"\nstopping; a training saves its last step first (Ctrl-C again: do not wait for it)\n")
        raise KeyboardInterrupt

    def sentence(self, name: str, resume: str) -> str:
        """What was stopped, what is kept, how to go on.

        Args:
            name: The command.
            resume: What is kept of it, and what the same command does next time.
        """
        by = "SIGTERM" if signal.SIGTERM in self.signals[:1] else "Ctrl-C"
        ended = "is being ended" if len(self.signals) > 1 and by == "Ctrl-C" else "has ended"
        return f"{name} was stopped by {by}; all that it had started {ended}. {resume}"


def tell_failure(name: str, error: Exception, is_verbose: bool) -> int:
    """Say what ended a command, once; returns the exit status.

    Args:
        name: The command.
        error: What ended it.
        is_verbose: Whether tracebacks are wanted; those of unexpected errors always are.
    """
    missing = explain_missing(error)
    is_ours = isinstance(error, LewisError) or missing is not None
    if is_verbose or not is_ours:
        traceback.print_exception(error)
    if isinstance(error, ConfigError):
        said, status = f"settings: {error}", EXIT_SETTINGS
    else:
        said, status = f"{name} failed: {missing or f'{type(error).__name__}: {error}'}", EXIT_FAILED
    if not is_ours:
        said += "\nThis should not happen: it is a defect of the program, please report it"
    sys.stderr.write("\n".join([said, *notes(error)]) + "\n")
    return status


def notes(error: BaseException | None) -> Iterator[str]:
    """What was noted about an error, and about those that caused it."""
    while error is not None:
        yield from getattr(error, "__notes__", ())
        error = error.__cause__
