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


def sample_chunk(paths: Sequence[str], root: Path, max_pixels: int) -> list[Sampled | str]:
    """Open files.

    Args:
        paths: Files below the root.
        root: Data root.
        max_pixels: Larger images are refused before they are decoded.

    Returns:
        What is known of each, or the reason why it cannot be used.
    """
    return [_sample_one(path, root, max_pixels) for path in paths]


def _sample_one(path: str, root: Path, max_pixels: int) -> Sampled | str:
    try:
        return sample_image(root, path, max_pixels)
    except ImageError as error:
        return error.reason


def serve(descriptor: int) -> None:
    """Do what comes through a socket (a function and its arguments), until its other end is closed, however it was.

    Each answer is what the function returned, or the error that it raised.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # sent to both; the other process says what becomes of this one
    warnings.filterwarnings("ignore", module="PIL")  # about metadata; what matters raises
    with Connection(descriptor) as connection, contextlib.suppress(EOFError, ConnectionError):
        while True:
            do, arguments = connection.recv()
            try:
                answer = do(*arguments)
            except Exception as error:  # noqa: BLE001 # it is raised where the answer is taken
                answer = error
            connection.send(answer)


def prepare_worker() -> None:
    """In a worker process of a pool: end when the parent is gone, however it ended."""
    warnings.filterwarnings("ignore", module="PIL")  # about metadata; what matters raises
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_wait_and_end, args=(parent,), daemon=True).start()


def _wait_and_end(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
