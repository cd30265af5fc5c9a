"""Say in words that a disk is full or a folder cannot be written, whichever library found out."""

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from lewis_core.errors import LewisError, ProcessError, StorageError

_REASONS = {
    errno.ENOSPC: "no space is left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file became larger than this process may write",
    errno.EROFS: "the folder is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EIO: "the disk reports an error",
}
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
            raise StorageError(f"{_REASONS[errno.ENOSPC]} of {place}; make room, and run the command again") from error
        raise
    except LewisError:
        raise
    except Exception as error:
        if (reason := storage_problem(error)) is None:
            raise
        raise StorageError(f"{reason}; make room or give access, and run the command again ({place})") from error


def is_full(place: Path) -> bool:
    """Whether the disk of a folder has no room for even a small file."""
    try:
        return shutil.disk_usage(place).free < 256 << 10
    except OSError:
        return False


def storage_problem(error: BaseException) -> str | None:
    """What is wrong with the file system, if that is what caused an error; looks through chained errors."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        number = cause.errno if isinstance(cause, OSError) else None
        if number not in _REASONS:
            number = next((known for words, known in _WORDS.items() if words in str(cause).lower()), None)
        if number is not None:
            name = getattr(cause, "filename", None)
            return _REASONS[number] + (f": {name}" if name else "")
        cause = cause.__cause__ or cause.__context__
    return None
