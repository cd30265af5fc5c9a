"""Say in words that a disk is full or a folder cannot be written, whichever library found out."""

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from lewis_core.errors import LewisError, ProcessError, StorageError

_ROOM, _ACCESS = "make room", "give access, or name another folder (run.work_dir)"
_REASONS = {
    errno.ENOSPC: ("no space is left on the disk", _ROOM),
    errno.EDQUOT: ("the disk quota is used up", _ROOM),
    errno.EFBIG: ("a file became larger than this process may write", "raise the limit (ulimit -f)"),
    errno.EROFS: ("the folder is read-only", _ACCESS),
    errno.EACCES: ("permission denied", _ACCESS),
    errno.EPERM: ("permission denied", _ACCESS),
    errno.EIO: ("the disk reports an error", "see the system's log"),
}
"""What the system's errors mean, and what to do."""
_WORDS = {
    "no space left on device": errno.ENOSPC,
    "database or disk is full": errno.ENOSPC,
    "file too large": errno.EFBIG,
    "read-only file system": errno.EROFS,
    "attempt to write a readonly database": errno.EROFS,
}
"""What libraries say that do not pass the system's error on."""


@contextlib.contextmanager
def naming_storage_errors(place: Path) -> Iterator[None]:
    """Turn errors of the file system into one that says what to do; leave all others as they are.

    Args:
        place: What was being written to.

    Raises:
        StorageError: If the body failed because something could not be written (or read).
    """
    try:
        yield
    except ProcessError as error:
        if is_full(place):  # a child that could not even write its log cannot say why it died
            raise StorageError(explain(errno.ENOSPC, place)) from error
        raise
    except LewisError:
        raise
    except Exception as error:
        if (problem := storage_problem(error)) is None:
            raise
        number, name = problem
        raise StorageError(explain(number, name or place)) from error


def explain(number: int, place: Path | str) -> str:
    """Say in words what is wrong with the file system at a place, and what to do."""
    reason, remedy = _REASONS[number]
    return f"{reason}: {place}; {remedy}, and run the command again"


def is_full(place: Path) -> bool:
    """Whether the disk of a folder has no room for even a small file."""
    try:
        return shutil.disk_usage(place).free < 256 << 10
    except OSError:
        return False


def storage_problem(error: BaseException) -> tuple[int, str] | None:
    """Number of the system's error and its file (empty if unknown), if one caused an error; looks through chains."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        number = cause.errno if isinstance(cause, OSError) else None
        if number not in _REASONS:
            number = next((known for words, known in _WORDS.items() if words in str(cause).lower()), None)
        if number is not None:
            return number, str(getattr(cause, "filename", None) or "")
        cause = cause.__cause__ or cause.__context__
    return None
