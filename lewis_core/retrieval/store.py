"""Embeddings that outlive a run: by content of the picture and by encoder, shared by all stages that use a store.

A folder for each encoder holds parts, safetensors files that are written beside their place and renamed. Each names its
pictures and carries a digest of its numbers: a damaged part is removed, and its pictures are encoded again. Any number
of runs may read and add at a time; parts are put together when there are many.
"""

import fcntl
import hashlib
import json
import logging
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lewis_core.retrieval.vectors import TENSOR, Matrix

logger = logging.getLogger(__name__)
MAX_PARTS = 16
"""More parts than this are put together."""


class EmbeddingStore:
    """Embeddings of one encoder.

    Args:
        folder: Folder of this encoder's embeddings; made when needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def find(self, names: Sequence[str]) -> dict[str, Matrix]:
        """Embeddings that are there.

        Args:
            names: sha256 of pictures.

        Returns:
            Embedding of each picture that is known, shape ``(D,)``.
        """
        wanted, found = set(names), dict[str, Matrix]()
        parts = self._parts()
        for part in parts:
            known, matrix = _load(part)
            found |= {name: matrix[row].copy() for row, name in enumerate(known) if name in wanted}
        if len(parts) > MAX_PARTS:
            self._put_together()
        return found

    def add(self, names: Sequence[str], matrix: Matrix) -> None:
        """Keep embeddings, durably.

        Args:
            names: sha256 of each row's picture.
            matrix: Shape ``(N, D)``.
        """
        from safetensors.numpy import save_file

        rows = np.ascontiguousarray(matrix, dtype=np.float32)
        about = {"names": json.dumps(list(names)), "digest": _digest(rows)}
        place = self._folder / f"{uuid.uuid4().hex}.safetensors"
        unfinished = place.with_suffix(".unfinished")
        save_file({TENSOR: rows}, unfinished, metadata=about)
        unfinished.rename(place)

    def _parts(self) -> list[Path]:
        return sorted(self._folder.glob("*.safetensors"))

    def _put_together(self) -> None:
        """Make one part of all, unless another run is doing so."""
        with (self._folder / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            parts = self._parts()
            rows: dict[str, Matrix] = {}
            for part in parts:
                names, matrix = _load(part)
                rows |= dict(zip(names, matrix, strict=True))
            if rows:
                self.add(list(rows), np.stack(list(rows.values())))
            for part in parts:
                part.unlink(missing_ok=True)


def _digest(rows: Matrix) -> str:
    return hashlib.sha256(rows.tobytes()).hexdigest()


def _load(part: Path) -> tuple[list[str], Matrix]:
    """Read a part; nothing if it is damaged, or was put together with others meanwhile."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(part, framework="numpy") as file:
            about, rows = file.metadata() or {}, file.get_tensor(TENSOR)
        names = json.loads(about["names"])
        if len(names) == len(rows) and about["digest"] == _digest(rows):
            return names, rows
        problem = "its numbers were changed"
    except FileNotFoundError:
        return [], np.zeros((0, 0), np.float32)
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        problem = str(error)
    logger.warning("%s is damaged (%s) and removed; its pictures are encoded again", part, problem)
    part.unlink(missing_ok=True)
    return [], np.zeros((0, 0), np.float32)
