"""What opens the files of a data root: this process, with threads or other processes to help, as their number deserves.

Decoding leaves the interpreter, but opening a small image mostly runs in it: processes are twice as fast as threads
there, and not slower elsewhere. They do not load the main module, so that they start fast whatever it is.
"""

import multiprocessing
import selectors
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

from lewis_core.data.images import Sampled
from lewis_core.data.looks import Examined, examine
from lewis_core.data.workers import sample_chunk
from lewis_core.errors import DataError

T = TypeVar("T")
Outcome = tuple[str, Examined | str]
"""Path of a file, and what is known of it or the reason why it cannot be used."""
_CHUNK = 64
_WORTH_PROCESSES = 2000
"""Files from which on processes are started: with so many small images, one has made up for its start."""
_AHEAD = 2
"""Chunks that a process is given at a time, so that the next one is there when one is done."""
_SERVE = "import sys; sys.path = {path!r}; from lewis_core.data.workers import serve; serve({descriptor})"


class Helper:
    """Another process that opens files; it ends when this one does, however that happens."""

    def __init__(self) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        self.given: deque[tuple[Any, ...]] = deque()
        """Arguments of what it has not answered."""
        with theirs:
            program = _SERVE.format(path=sys.path, descriptor=theirs.fileno())
            self.process = subprocess.Popen(
                [sys.executable, "-c", program], stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
            )

    def give(self, do: Callable[..., object], *arguments: object) -> None:
        """Let it call a function of a module that loads Pillow only.

        Raises:
            DataError: If it was killed.
        """
        try:
            self.connection.send((do, arguments))
        except ConnectionError as error:
            raise _killed() from error
        self.given.append(arguments)

    def take(self) -> tuple[tuple[Any, ...], Any]:
        """Wait for its next answer.

        Returns:
            The arguments, and what the function returned; what it raised is raised.

        Raises:
            DataError: If it was killed.
        """
        try:
            answer = self.connection.recv()
        except (EOFError, ConnectionError) as error:
            raise _killed() from error
        if isinstance(answer, Exception):
            raise answer
        return self.given.popleft(), answer

    def end(self) -> None:
        """End it, also in the middle of a file."""
        self.connection.close()
        self.process.kill()
        self.process.wait()


class Readers:
    """Opens files; a context manager.

    Args:
        num_workers: Threads or processes, this one included; the results do not depend on it.
    """

    def __init__(self, num_workers: int) -> None:
        self.helpers: list[Helper] = []
        self._num_workers = num_workers

    def expect(self, num_files: int) -> None:
        """Start processes, if there will be so many files that it is worth it, and none have been started."""
        if num_files >= _WORTH_PROCESSES and not self.helpers:
            self.helpers = [Helper() for _ in range(self._num_workers - 1)]

    def examine(self, paths: Sequence[str], root: Path, max_pixels: int) -> Iterator[list[Outcome]]:
        """Open files in chunks.

        Args:
            paths: Files below the root.
            root: Data root.
            max_pixels: Larger images are refused before they are decoded.

        Yields:
            What is known of the files of a chunk; chunks in no order.

        Raises:
            DataError: If a process was killed.
        """
        chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
        if self.helpers:
            yield from self._share(iter(chunks), root, max_pixels)
            return
        sample = partial(sample_chunk, root=root, max_pixels=max_pixels)
        if self._num_workers == 1:
            yield from (_see(chunk, sample(chunk)) for chunk in chunks)
            return
        threads = ThreadPoolExecutor(self._num_workers)
        try:
            for chunk, found in zip(chunks, threads.map(sample, chunks), strict=True):
                yield _see(chunk, found)
        finally:
            threads.shutdown(cancel_futures=True)  # what has not begun is not done any more

    def _share(self, chunks: Iterator[Sequence[str]], root: Path, max_pixels: int) -> Iterator[list[Outcome]]:
        """Deal chunks to the other processes, and open some here while none of them has an answer."""
        with selectors.DefaultSelector() as answers:
            for helper in self.helpers:
                answers.register(helper.connection, selectors.EVENT_READ, helper)
            is_done = False
            while not is_done or any(helper.given for helper in self.helpers):
                for helper in self.helpers:
                    while len(helper.given) < _AHEAD and (chunk := next(chunks, None)):
                        helper.give(sample_chunk, chunk, root, max_pixels)
                if answered := answers.select(timeout=None if is_done else 0):
                    for key, _ in answered:
                        (chunk, *_), found = key.data.take()
                        yield _see(chunk, found)
                elif own := next(chunks, None):
                    yield _see(own, sample_chunk(own, root, max_pixels))
                else:
                    is_done = True

    def begin(self, do: Callable[..., T], *arguments: object) -> Callable[[], T]:
        """Let an idle process call a function of a module that loads Pillow only, meanwhile.

        Returns:
            Waits for what it returns; calls the function itself if there is no other process.
        """
        if not self.helpers:
            return partial(do, *arguments)
        self.helpers[0].give(do, *arguments)
        return lambda: cast("T", self.helpers[0].take()[1])

    def __enter__(self) -> "Readers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes."""
        for helper in self.helpers:
            helper.end()


def _killed() -> DataError:
    return DataError(
        "a process that opens photos was killed, perhaps for want of memory; what was read is remembered. Try "
        "again, with fewer processes (run.runtime.num_workers) or smaller photos (catalog.max_image_pixels)"
    )


def _see(paths: Sequence[str], found: Sequence[Sampled | str]) -> list[Outcome]:
    """See what the usable ones of some files look like."""
    seen = iter(examine([sample for sample in found if not isinstance(sample, str)]))
    outcomes = (sample if isinstance(sample, str) else next(seen) for sample in found)
    return list(zip(paths, outcomes, strict=True))
