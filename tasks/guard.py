"""Runs a command and never lets it, or anything it started, outlive the process that asked for it.

Used as ``python guard.py GRACE_S LOG_FILE COMMAND...`` with a pipe as standard input whose only writer is the parent.
End of file there means that the parent ended, however: exit, ``kill -9``, out of memory. Then, or on SIGTERM or
SIGINT, everything gets SIGTERM, after ``GRACE_S`` seconds SIGKILL. As child subreaper the guard also finds
descendants that left the process group (torch elastic starts its workers in sessions of their own).

Neither the guard nor the command ever writes to a pipe of the parent: a dead parent's pipe would end the guard before
it has ended the command. Standard library only, so that it starts in about 20 ms.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

PR_SET_CHILD_SUBREAPER = 36
STOPPED = 128 + signal.SIGTERM


class Stop:
    """Why everything has to end; set by a signal or by the end of the parent."""

    def __init__(self) -> None:
        self.reason = ""
        self._wake, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def _on_signal(self, number: int, _: object) -> None:
        self.reason = self.reason or signal.Signals(number).name

    def wait(self) -> None:
        """Return on a signal, at the end of the parent, or after five seconds."""
        ready, _, _ = select.select([0, self._wake], [], [], 5.0)
        if self._wake in ready:
            os.read(self._wake, 4096)
        if 0 in ready and not os.read(0, 1):
            self.reason = self.reason or "the parent ended"


def descendants(pid: int) -> list[int]:
    """Process ids of all living descendants of a process."""
    found: list[int] = []
    todo = [pid]
    while todo:
        current = todo.pop()
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{current}/task").iterdir():
                children = [int(child) for child in (thread / "children").read_text().split()]
                found.extend(children)
                todo.extend(children)
    return found


def left(child: subprocess.Popen[bytes]) -> set[int]:
    """Process ids of whatever still lives below this process; what ended is collected first."""
    child.poll()
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0] > 0:
            pass  # an orphan that was handed to this process
    return set(descendants(os.getpid()))


def end_everything(child: subprocess.Popen[bytes], grace_s: float) -> None:
    """Ask whatever is left to end, then make it.

    A process that is just being started is in no list yet: so look again until nobody is left, and ask whoever is new.
    """
    deadline = time.monotonic() + grace_s
    asked: set[int] = set()
    while living := left(child):
        is_late = time.monotonic() >= deadline
        for pid in living if is_late else living - asked:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL if is_late else signal.SIGTERM)
        asked |= living
        time.sleep(0.05)


def say(log: BinaryIO, text: str) -> None:
    """Write a line to the log; a disk that is full must not keep this process from its work."""
    with contextlib.suppress(OSError):
        log.write(f"{text}\n".encode())


def run(grace_s: float, log: BinaryIO, command: list[str]) -> int:
    """Run the command until it ends or must end; returns its exit status."""
    stop = Stop()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    except OSError as error:
        say(log, f"cannot start {command[0]}: {error}")
        return 127
    code = None
    while code is None and not stop.reason:
        stop.wait()
        code = child.poll()
    if code is None:
        say(log, f"[guard] {stop.reason}: ending what it started")
    end_everything(child, grace_s)
    if code is None:
        return STOPPED
    return code if code >= 0 else 128 - code


def main() -> int:
    """Read the command line and run."""
    with Path(sys.argv[2]).open("ab", buffering=0) as log:
        return run(float(sys.argv[1]), log, sys.argv[3:])


if __name__ == "__main__":
    sys.exit(main())
