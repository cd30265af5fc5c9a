"""Child processes that cannot outlive us, whose output goes to a log file that is followed while they run.

Everything heavy runs as such a process: it can be cancelled and timed out, frees its GPU memory, and dies with its
parent however the parent dies (see :mod:`tasks.guard`). :func:`process_scope` around a flow's body ends every process
before the task runner waits for its threads, so a cancelled flow does not hang on training.
"""

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path

from lewis_core.errors import ProcessError

logger = logging.getLogger(__name__)
GUARD = Path(__file__).with_name("guard.py")
TIMED_OUT = 124
_lock = threading.Lock()
LineHandler = Callable[[str], None]


class Scope:
    """Everything that one flow's body started."""

    def __init__(self) -> None:
        self.live: dict[Process, None] = {}
        self.closing = threading.Event()


_scope: ContextVar[Scope | None] = ContextVar("process_scope", default=None)
_scopes: list[Scope] = [Scope()]
"""Open scopes, the newest last; below them the last one that was closed, or what is started outside of any."""


def _current_scope() -> Scope:
    """The scope of this thread's flow; threads that know of none belong to the newest."""
    return _scope.get() or _scopes[-1]


class Process:
    """A guarded process whose log file is followed.

    Args:
        name: What it does; shown in errors.
        argv: Command and arguments.
        log: File that gets its output, appended.
        on_line: Called, in a thread of its own, with each line that it writes.
        env: Variables added to the environment.
        grace_s: Time between asking it to end and making it.
        is_scoped: Whether the end of a flow's body ends it; otherwise it lives until it is stopped, or we die.

    Raises:
        ProcessError: If the flow is being torn down, so that a retry cannot start it again.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        log: Path,
        on_line: LineHandler | None = None,
        env: Mapping[str, str] | None = None,
        grace_s: float = 10.0,
        is_scoped: bool = True,
    ) -> None:
        self.name, self.log, self.grace_s = name, log, grace_s
        self.tail: deque[str] = deque(maxlen=20)
        self._on_line = on_line
        self._is_unheard = False
        self._ended = threading.Event()
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        self._offset = log.stat().st_size
        self._scope = _current_scope() if is_scoped else None
        with _lock:
            if self._scope is not None and self._scope.closing.is_set():
                raise ProcessError(name, 128 + 15, ["not started: the flow is ending"])
            self._popen = subprocess.Popen(
                [sys.executable, "-S", "-E", str(GUARD), str(grace_s), str(log), *argv],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
                start_new_session=True,
            )
            if self._scope is not None:
                self._scope.live[self] = None
        self._follower = threading.Thread(target=self._follow, name=f"follow-{name}", daemon=True)
        self._follower.start()

    @property
    def pid(self) -> int:
        """Process id of the guard; the command is its child."""
        return self._popen.pid

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self._popen.poll() is None

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait for the end; returns the exit status.

        Raises:
            ProcessError: If it ran longer than ``timeout_s``; it is ended then.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while self.is_alive:
            if deadline is not None and time.monotonic() > deadline:
                self.stop()
                raise ProcessError(self.name, TIMED_OUT, [*self.tail, f"it ran longer than {timeout_s:g} s"])
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(0.2)
        self._finish()
        return self._popen.returncode

    def ask_to_end(self) -> None:
        """Send SIGTERM and return at once."""
        if self.is_alive:
            self._popen.terminate()

    def stop(self) -> None:
        """End it and wait until it is gone."""
        self.ask_to_end()
        try:
            self._popen.wait(self.grace_s + 5)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        self._finish()

    def _finish(self) -> None:
        if self._popen.stdin:
            self._popen.stdin.close()
        self._ended.set()
        if threading.current_thread() is not self._follower:
            self._follower.join(10)
        with _lock:
            if self._scope is not None:
                self._scope.live.pop(self, None)

    def _follow(self) -> None:
        part = b""
        with self.log.open("rb") as file:
            file.seek(self._offset)
            while True:
                over = self._ended.is_set()
                got = file.read(1 << 16)
                *lines, part = (part + got).split(b"\n")
                for line in lines:
                    self._take(line)
                if not got:
                    if over:
                        break
                    self._ended.wait(0.2)
        if part:
            self._take(part)

    def _take(self, raw: bytes) -> None:
        line = raw.decode("utf-8", "replace").split("\r")[-1]
        if not line.strip():
            return
        if not line.startswith("\x1e"):
            self.tail.append(line)
        if self._on_line is None:
            return
        try:
            self._on_line(line)
        except OSError as error:  # a full disk fails every line: it is said once
            if not self._is_unheard:
                logger.warning("%s: what it says cannot be kept: %s", self.name, error)
            self._is_unheard = True
        except Exception:
            logger.warning("%s: a line could not be handled: %r", self.name, line[:200], exc_info=True)


@contextlib.contextmanager
def process_scope() -> Iterator[None]:
    """Scope of a flow's body: whatever ends it ends every process that it started, and no other flow's."""
    scope = Scope()
    with _lock:
        _scopes.append(scope)
    token = _scope.set(scope)
    try:
        yield
    finally:
        _scope.reset(token)
        scope.closing.set()
        with _lock:
            left = list(scope.live)
            _scopes.remove(scope)
            if len(_scopes) == 1:
                _scopes[0] = scope  # a thread that comes late starts nothing more
        for process in reversed(left):  # what was started last may still need what was started before
            process.stop()


def is_closing() -> bool:
    """Whether the flow is being torn down."""
    return _current_scope().closing.is_set()


def run_process(
    name: str,
    argv: Sequence[str],
    log: Path,
    on_line: LineHandler | None = None,
    timeout_s: float | None = None,
    env: Mapping[str, str] | None = None,
    grace_s: float = 10.0,
) -> None:
    """Run a guarded process to its end.

    Args:
        name: What it does; shown in errors.
        argv: Command and arguments.
        log: File that gets its output.
        on_line: Called with each line that it writes.
        timeout_s: Longest time it may take.
        env: Variables added to the environment.
        grace_s: Time between asking it to end and making it.

    Raises:
        ProcessError: If it ends with another status than 0, or takes too long.
    """
    process = Process(name, argv, log, on_line, env, grace_s)
    try:
        code = process.wait(timeout_s)
    finally:
        process.stop()
    if code != 0:
        raise ProcessError(name, code, process.tail)
