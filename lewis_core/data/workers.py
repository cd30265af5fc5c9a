"""What worker processes do to inspect files; a module of its own, so that they start fast."""

import multiprocessing
import os
import threading
import warnings
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from lewis_core.data.images import Examined, Sampled, sample_image
from lewis_core.data.looks import read_looks
from lewis_core.errors import ImageError

Outcome = tuple[str, Examined | str]
"""Path of a file, and what is known of it or the reason why it cannot be used."""


def examine_chunk(chunk: tuple[Sequence[str], Path, int]) -> list[Outcome]:
    """Open files: paths, data root, largest number of pixels."""
    paths, root, max_pixels = chunk
    sampled = [_sample_one(path, root, max_pixels) for path in paths]
    looks = iter(read_looks([found.cells for found in sampled if not isinstance(found, str)]))
    return [
        (path, found if isinstance(found, str) else Examined(*found[:3], next(looks)))
        for path, found in zip(paths, sampled, strict=True)
    ]


def _sample_one(path: str, root: Path, max_pixels: int) -> Sampled | str:
    try:
        return sample_image(root, path, max_pixels)
    except ImageError as error:
        return error.reason


def prepare_worker() -> None:
    """In a worker process: end when the parent is gone, however it ended."""
    warnings.filterwarnings("ignore", module="PIL")  # about metadata; what matters raises
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_wait_and_end, args=(parent,), daemon=True).start()


def _wait_and_end(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
