"""Rows of a training run in JSONL files that a kill and a full disk leave usable."""

import contextlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)
Row = dict[str, Any]


def read_rows(path: Path, last_step: int | None = None) -> list[Row]:
    """Read a JSONL file of rows with a ``step``; a cut last line and rows after ``last_step`` are left out.

    Lines end with a line feed and nothing else: completions may hold the other signs that Unicode counts as ends. A
    cut may go through a letter of several bytes.
    """
    rows = []
    for line in path.read_bytes().split(b"\n") if path.is_file() else ():
        try:
            row = json.loads(line.decode())
        except ValueError:
            break
        if last_step is None or row["step"] <= last_step:
            rows.append(row)
    return rows


class Journal:
    """A JSONL file that grows by whole rows.

    What cannot be written (a full disk) waits in memory, in order, and is written with the next rows. A checkpoint is
    complete only once nothing waits (:meth:`flush`), so a run that goes on from it lacks no row.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[str] = []

    def rewind(self, last_step: int) -> None:
        """Drop rows after a step, and a cut last line."""
        self._rewrite(read_rows(self.path, last_step))

    def amend(self, step: int, values: Mapping[str, Any]) -> None:
        """Add values to the row of a step."""
        self._rewrite([{**row, **values} if row["step"] == step else row for row in read_rows(self.path)])

    def _rewrite(self, rows: Sequence[Row]) -> None:
        text = "".join(map(_line, rows))
        part = self.path.with_name(self.path.name + ".part")
        with part.open("wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path)

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows, or let them wait if they cannot be written now."""
        is_first = not self._waiting
        self._waiting += map(_line, rows)
        try:
            self.flush()
        except OSError as error:
            if is_first:
                logger.warning("%s cannot be written (%s); its rows wait in memory", self.path, error.strerror or error)

    def flush(self, *, durable: bool = False) -> None:
        """Write all rows that wait.

        Args:
            durable: Wait until they are on the disk.

        Raises:
            OSError: If they cannot be written; they go on waiting, and the file is as it was.
        """
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("ab") as file:
                file.write("".join(self._waiting).encode())
                file.flush()
                if durable:
                    os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self.path, size)
            raise
        self._waiting = []


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
