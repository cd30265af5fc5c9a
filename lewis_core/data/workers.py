"""What processes do that open photos for another one.

A module of its own that imports Pillow only, neither numpy nor pydantic, so that they start fast.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from lewis_core.data.images import Sampled, sample_image
from lewis_core.errors import ImageError

Chunk = tuple[Sequence[str], Path, int]
"""Paths of files, the data root that they lie in, and the largest number of pixels."""


def sample_chunk(chunk: Chunk) -> list[Sampled | str]:
    """Open files.

    Returns:
        What is known of each, or the reason why it cannot be used.
    """
    paths, root, max_pixels = chunk
    return [_sample_one(path, root, max_pixels) for path in paths]


def _sample_one(path: str, root: Path, max_pixels: int) -> Sampled | str:
    try:
        return sample_image(root, path, max_pixels)
    except ImageError as error:
        return error.reason


def serve(descriptor: int) -> None:
    """Open the chunks of files that come through a socket, until its other end is closed, however that happened."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # sent to both; the other process says what becomes of this one
    warnings.filterwarnings("ignore", module="PIL")  # about metadata; what matters raises
    with Connection(descriptor) as connection, contextlib.suppress(EOFError, ConnectionError):
        while True:
            connection.send(sample_chunk(connection.recv()))


def prepare_worker() -> None:
    """In a worker process of a pool: end when the parent is gone, however it ended."""
    warnings.filterwarnings("ignore", module="PIL")  # about metadata; what matters raises
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_wait_and_end, args=(parent,), daemon=True).start()


def _wait_and_end(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
