"""Photos → pixels of an encoder's size, ahead of it: read, checked, decoded, resized and cropped by all cores.

Batches lie in a ring of fixed size, so memory is bounded. With a GPU to feed, worker processes write into it: a memory
file that ends with this process, however it ends. Otherwise threads do. Worker processes load neither torch nor the
model. The pixels are those of open_clip's own preprocessing (torchvision on Pillow images), bit for bit.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lewis_core.data.images import load_rgb
from lewis_core.data.workers import prepare_worker
from lewis_core.errors import DataError
from lewis_core.records import ImageRecord

Pixels = NDArray[np.uint8]
_TASK = 8
"""Photos of one task of a worker."""
_WORTH_PROCESSES = 500
"""Photos from which on worker processes are started to feed a GPU."""
_ring: Pixels | None = None
"""In a worker process: the pixels that it writes."""


@dataclass(frozen=True)
class Geometry:
    """What an encoder wants to see of a photo."""

    height: int
    width: int
    resize: Literal["shortest", "squash"] = "shortest"
    """``shortest``: the shorter side is made to fit, and the middle is cut out (square encoders only); ``squash``: the
    proportions are given up."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"


def fit(image: Image.Image, geometry: Geometry) -> Pixels:
    """Resize and crop an RGB image; shape ``(H, W, 3)``."""
    size = geometry.width, geometry.height
    if geometry.resize == "shortest":
        short = min(image.size)
        size = (
            geometry.width if image.width == short else int(geometry.width * image.width / short),
            geometry.height if image.height == short else int(geometry.height * image.height / short),
        )
    if size != image.size:
        image = image.resize(size, getattr(Image.Resampling, geometry.interpolation.upper()))
    left, top = round((image.width - geometry.width) / 2.0), round((image.height - geometry.height) / 2.0)
    return np.asarray(image.crop((left, top, left + geometry.width, top + geometry.height)))


def iter_pixels(
    images: Sequence[ImageRecord],
    data_root: Path,
    geometry: Geometry,
    batch_size: int,
    num_workers: int,
    *,
    feeds_gpu: bool = False,
) -> Iterator[Pixels]:
    """Decode photos, in order.

    Args:
        images: The photos.
        data_root: Folder that holds them.
        geometry: Size and shape.
        batch_size: Photos of a batch.
        num_workers: Processes or threads.
        feeds_gpu: Whether many photos are worth processes.

    Yields:
        Batches of shape ``(B, H, W, 3)``; each is overwritten after the next was asked for.

    Raises:
        ImageError: If a photo cannot be used, or is no longer the one that its record describes.
        DataError: If a worker process was killed.
    """
    slots = 3 + -(-num_workers * _TASK * 2 // batch_size)
    shape = slots * batch_size, geometry.height, geometry.width, 3
    processes = feeds_gpu and num_workers > 1 and len(images) >= _WORTH_PROCESSES
    starts = range(0, len(images), batch_size)
    with _open_workers(shape, num_workers, processes) as (pool, ring):
        waiting: deque[tuple[int, int, list[Future[None]]]] = deque()
        for start, slot in zip(starts, count()):
            batch, first = images[start : start + batch_size], slot % slots * batch_size
            waiting.append(
                (first, len(batch), _submit(pool, None if processes else ring, batch, first, data_root, geometry))
            )
            if len(waiting) >= slots - 1:
                yield _finish(ring, *waiting.popleft())
        while waiting:
            yield _finish(ring, *waiting.popleft())


def _submit(
    pool: Executor, ring: Pixels | None, batch: Sequence[ImageRecord], first: int, root: Path, geometry: Geometry
) -> list[Future[None]]:
    return [
        pool.submit(_fill, ring, first + place, batch[place : place + _TASK], root, geometry)
        for place in range(0, len(batch), _TASK)
    ]


def _finish(ring: Pixels, first: int, size: int, tasks: Sequence[Future[None]]) -> Pixels:
    try:
        for task in tasks:
            task.result()
    except BrokenProcessPool as error:
        raise DataError("a process that decodes photos was killed, perhaps for want of memory") from error
    return ring[first : first + size]


def _fill(ring: Pixels | None, first: int, images: Sequence[ImageRecord], root: Path, geometry: Geometry) -> None:
    """Write photos into a ring: the one given, or that of this worker process."""
    target = _ring if ring is None else ring
    if target is None:
        raise RuntimeError("this process has no ring")
    for place, image in enumerate(images, first):
        target[place] = fit(load_rgb(root, image), geometry)


@contextmanager
def _open_workers(shape: tuple[int, ...], num_workers: int, processes: bool) -> Iterator[tuple[Executor, Pixels]]:
    """Start workers and make the ring that they write into."""
    if not processes:
        pool = ThreadPoolExecutor(num_workers)
        try:
            yield pool, np.empty(shape, np.uint8)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        return
    descriptor = os.memfd_create("lewis-pixels")
    try:
        os.ftruncate(descriptor, int(np.prod(shape)))
        path = f"/proc/{os.getpid()}/fd/{descriptor}"
        with ProcessPoolExecutor(
            num_workers, mp_context=get_context("spawn"), initializer=_open_ring, initargs=(path, shape)
        ) as workers:
            try:
                yield workers, np.memmap(path, np.uint8, "r+", shape=shape)
            finally:
                workers.shutdown(wait=False, cancel_futures=True)
    finally:
        os.close(descriptor)


def _open_ring(path: str, shape: tuple[int, ...]) -> None:
    """In a worker process: open the ring, and end with the parent."""
    global _ring  # noqa: PLW0603 # what a process pool's initializer leaves to its tasks
    prepare_worker()
    _ring = np.memmap(path, np.uint8, "r+", shape=shape)
