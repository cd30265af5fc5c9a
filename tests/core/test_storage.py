"""What is said when something cannot be written."""

import errno
import sqlite3
from collections import namedtuple
from pathlib import Path

import pytest

from lewis_core.errors import CatalogError, ProcessError, StorageError
from lewis_core.storage import naming_storage_errors


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a.txt"), "no space is left on the disk: a.txt; make room"),
        (OSError(errno.EROFS, "Read-only file system", "b"), "the folder is read-only: b; give access, or name"),
        (PermissionError(errno.EACCES, "Permission denied", "c"), "permission denied: c"),
        (OSError(errno.EFBIG, "File too large", "d"), r"than this process may write: d; raise the limit \(ulimit -f\)"),
        (sqlite3.OperationalError("database or disk is full"), "no space is left on the disk: /.*; make room, and run"),
        (RuntimeError("Error: No space left on device (os error 28)"), "no space is left"),
    ],
)
def test_storage_errors_have_a_name_whoever_finds_them(tmp_path: Path, error: Exception, says: str) -> None:
    with pytest.raises(StorageError, match=says), naming_storage_errors(tmp_path):
        try:
            raise error
        except Exception as cause:
            raise ValueError("wrapped by a library") from cause


@pytest.mark.parametrize("error", [ValueError("x"), CatalogError("x"), FileNotFoundError(errno.ENOENT, "no such file")])
def test_other_errors_are_left_alone(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, naming_storage_errors(tmp_path):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(("free", "expected"), [(1000, StorageError), (10**9, ProcessError)])
def test_a_child_that_died_on_a_full_disk_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, expected: type[Exception]
) -> None:
    usage = namedtuple("usage", "total used free")(10**9, 0, free)
    monkeypatch.setattr("lewis_core.storage.shutil.disk_usage", lambda _: usage)
    with pytest.raises(expected), naming_storage_errors(tmp_path):
        raise ProcessError("train-speaker", 1)
