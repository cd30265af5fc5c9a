"""One after the other: whoever is second waits, and sees what the first has made.

Turns are advisory locks of the kernel on files, so a holder that dies, however, gives its turn back at once: there is
nothing stale to detect and nothing to clean up. Waiting is polite: it is said in the log, and ends with the flow.
"""

import contextlib
import fcntl
import json
import logging
import os
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from lewis_core.errors import ProcessError
from tasks.processes import is_closing

logger = logging.getLogger(__name__)
POLL_S, REMIND_S = 0.2, 60.0


def try_lock(path: Path) -> IO[str] | None:
    """Take a lock if it is free; close the file to give it back. ``None`` if somebody has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    file = os.fdopen(descriptor, "r+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    file.truncate(0)
    json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}, file)
    file.flush()
    return file


def holder(path: Path) -> str:
    """Who has a lock, for people."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return f"process {known['pid']} on {known['host']}, since {known['since']}"
    except (OSError, ValueError, LookupError, TypeError):
        return "another process"


@contextlib.contextmanager
def turn(path: Path, what: str) -> Iterator[bool]:
    """Hold the only right to do something, waiting for it if need be.

    Args:
        path: The lock's file.
        what: What it is about, for the log.

    Yields:
        Whether somebody else had it before.

    Raises:
        ProcessError: If the flow ends while it waits.
    """
    file, said, has_waited = try_lock(path), 0.0, False
    while file is None:
        has_waited = True
        if is_closing():
            raise ProcessError(what, 128 + 15, ["stopped waiting: the flow is ending"])
        if time.monotonic() - said > REMIND_S:
            said = time.monotonic()
            logger.info("%s: waiting, %s is at it", what, holder(path))
        time.sleep(POLL_S * random.uniform(0.5, 1.5))
        file = try_lock(path)
    with file:
        yield has_waited
