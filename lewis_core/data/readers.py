"""What opens the files of a data root: this process, threads or processes, as their number deserves."""

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType

from lewis_core.data.images import Sampled
from lewis_core.data.looks import Examined, examine
from lewis_core.data.workers import prepare_worker, sample_chunk
from lewis_core.errors import DataError

Outcome = tuple[str, Examined | str]
"""Path of a file, and what is known of it or the reason why it cannot be used."""
_CHUNK = 64
_WORTH_PROCESSES = 2000
"""Files from which on processes are started: with so many small images, two have made up for their start."""


class Readers:
    """Opens files; a context manager.

    Decoding leaves the interpreter, but opening a small image mostly runs in it: processes are twice as fast as threads
    there, and not slower elsewhere. They start at once, so that they are there when their work has been found.

    Args:
        num_files: About how many there will be to open; few are not worth starting processes for.
        num_workers: Threads or processes; the results do not depend on it.
    """

    def __init__(self, num_files: int, num_workers: int) -> None:
        self._pool: Executor | None = None
        if num_workers > 1 and num_files >= _WORTH_PROCESSES:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=prepare_worker)
            for _ in range(num_workers):
                self._pool.submit(sample_chunk, ([], Path(), 0))  # starts one
        elif num_workers > 1:
            self._pool = ThreadPoolExecutor(num_workers)

    def examine(self, paths: Sequence[str], root: Path, max_pixels: int) -> Iterator[list[Outcome]]:
        """Open files in chunks.

        Args:
            paths: Files below the root.
            root: Data root.
            max_pixels: Larger images are refused before they are decoded.

        Yields:
            What is known of the files of a chunk, in order.

        Raises:
            DataError: If a process was killed.
        """
        chunks = [(paths[start : start + _CHUNK], root, max_pixels) for start in range(0, len(paths), _CHUNK)]
        try:
            samples = (map if self._pool is None else self._pool.map)(sample_chunk, chunks)
            for (chunk, _, _), found in zip(chunks, samples, strict=True):
                yield _see(chunk, found)
        except BrokenProcessPool as error:
            raise DataError(
                "a process that opens photos was killed, perhaps for want of memory; what was read is remembered. Try "
                "again, with fewer processes (run.runtime.num_workers) or smaller photos (catalog.max_image_pixels)"
            ) from error

    def __enter__(self) -> "Readers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the threads or processes; what has not begun is not done any more."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _see(paths: Sequence[str], found: Sequence[Sampled | str]) -> list[Outcome]:
    """See what the usable ones of some files look like."""
    seen = iter(examine([sample for sample in found if not isinstance(sample, str)]))
    outcomes = (sample if isinstance(sample, str) else next(seen) for sample in found)
    return list(zip(paths, outcomes, strict=True))
