"""What worker processes do to inspect files.

A module of its own that imports Pillow only, neither numpy nor pydantic, so that they start fast.
"""

import multiprocessing
import os
import threading
import warnings
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from lewis_core.data.images import Sampled, sample_image
from lewis_core.errors import ImageError


def sample_chunk(chunk: tuple[Sequence[str], Path, int]) -> list[Sampled | str]:
    """Open files: paths, data root, largest number of pixels.

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


def prepare_worker() -> None:
    """In a worker process: end when the parent is gone, however it ended."""
    warnings.filterwarnings("ignore", module="PIL")  # about metadata; what matters raises
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_wait_and_end, args=(parent,), daemon=True).start()


def _wait_and_end(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
