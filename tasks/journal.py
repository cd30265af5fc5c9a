"""What MLflow is to be told, on disk first: an append-only file beside a note of how far it was told.

A run writes its journal whatever MLflow does, so an outage, or a kill, loses nothing: the rest is sent by the next run
in the same work folder, or by ``python -m tasks.upload``. The writer holds a lock on its file while it lives, so a
journal that is still being written is never taken for one that was left behind.
"""

import contextlib
import fcntl
import json
import os
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lewis_core.records import JsonObject

PREFIX = "events-"


class Journal:
    """One run's file; also a record for people and scripts, whether MLflow is there or not.

    Args:
        path: The file; made if it is not there.

    Raises:
        BlockingIOError: If somebody writes it.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._lock = path, threading.Lock()
        self._file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):  # its writer was killed in the middle
            self._file.write("\n")
            self._file.flush()

    @classmethod
    def create(cls, folder: Path) -> "Journal":
        """Start a new one in a folder, named by the time."""
        name = f"{PREFIX}{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{uuid.uuid4().hex[:4]}.jsonl"
        return cls(folder / name)

    def append(self, entry: JsonObject) -> JsonObject:
        """Write an entry; returns it with its time, as it will be read again."""
        line = json.dumps({"time": time.time(), **entry}, default=str)
        with self._lock:
            self._file.write(line + "\n")
            self._file.flush()
        stamped: JsonObject = json.loads(line)
        return stamped

    def entries(self) -> list[JsonObject]:
        """Everything written so far; a last line that was cut by a kill is left out."""
        found: list[JsonObject] = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                found.append(entry)
        return found

    @property
    def _note(self) -> Path:
        return self.path.with_suffix(".sent")

    def progress(self) -> tuple[int, dict[str, str]]:
        """How many entries were sent, and MLflow's ids of the runs in them."""
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
            return int(note["sent"]), {str(key): str(value) for key, value in note["ids"].items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return 0, {}

    def note(self, sent: int, ids: dict[str, str]) -> None:
        """Remember how far it was sent."""
        unfinished = self._note.with_suffix(".sent-")
        unfinished.write_text(json.dumps({"sent": sent, "ids": ids}), encoding="utf-8")
        unfinished.replace(self._note)

    def close(self) -> None:
        """Give up the lock."""
        self._file.close()


@contextlib.contextmanager
def left_behind(folder: Path) -> Iterator[list[Journal]]:
    """Journals in a folder that nobody writes any more and that were not sent to the end, oldest first."""
    found: list[Journal] = []
    try:
        for path in sorted(folder.glob(f"{PREFIX}*.jsonl")):
            with contextlib.suppress(BlockingIOError):
                journal = Journal(path)
                entries = journal.entries()
                is_ours = bool(entries) and entries[0].get("event") == "open"
                if is_ours and (journal.progress()[0] < len(entries) or unended(entries)):
                    found.append(journal)
                else:
                    journal.close()
        yield found
    finally:
        for journal in found:
            journal.close()


def unended(entries: Sequence[JsonObject]) -> list[str]:
    """Keys of runs that were started and never ended, the parent last."""
    started = [str(entry["run"]) for entry in entries if entry["event"] == "start"]
    ended = {entry["run"] for entry in entries if entry["event"] == "end"}
    return [key for key in reversed(started) if key not in ended]


def describe(entry: JsonObject) -> str:
    """An entry in a few words, for messages."""
    text: Any = entry.get("name") or entry.get("path") or ""
    return f"{entry.get('event')} {text}".strip()
