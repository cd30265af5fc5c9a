"""What opens the files of a data root: this process, with threads or other processes to help, as their number deserves.

Decoding leaves the interpreter, but opening a small image mostly runs in it: processes are twice as fast as threads
there, and not slower elsewhere. They do not load the main module, so that they start fast whatever it is.
"""

import multiprocessing
import selectors
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from lewis_core.data.images import Sampled
from lewis_core.data.looks import Examined, examine
from lewis_core.data.workers import Chunk, sample_chunk
from lewis_core.errors import DataError

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
        self.given: deque[Sequence[str]] = deque()
        """Paths of the chunks that it has not answered."""
        with theirs:
            program = _SERVE.format(path=sys.path, descriptor=theirs.fileno())
            self.process = subprocess.Popen(
                [sys.executable, "-c", program], stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
            )

    def give(self, chunk: Chunk) -> None:
        """Let it open files."""
        try:
            self.connection.send(chunk)
        except ConnectionError as error:
            raise _killed() from error
        self.given.append(chunk[0])

    def take(self) -> list[Outcome]:
        """Wait for its next answer."""
        try:
            found = self.connection.recv()
        except (EOFError, ConnectionError) as error:
            raise _killed() from error
        return _see(self.given.popleft(), found)

    def end(self) -> None:
        """End it, also in the middle of a file."""
        self.connection.close()
        self.process.kill()
        self.process.wait()


class Readers:
    """Opens files; a context manager.

    Processes start at once, so that they are there when their work has been found.

    Args:
        num_files: About how many there will be to open; few are not worth starting processes for.
        num_workers: Threads or processes, this one included; the results do not depend on it.
    """

    def __init__(self, num_files: int, num_workers: int) -> None:
        worth = num_files >= _WORTH_PROCESSES
        self.helpers = [Helper() for _ in range(num_workers - 1)] if worth else []
        self._threads = ThreadPoolExecutor(num_workers) if num_workers > 1 and not worth else None

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
        starts = range(0, len(paths), _CHUNK)
        chunks: list[Chunk] = [(paths[start : start + _CHUNK], root, max_pixels) for start in starts]
        if self.helpers:
            yield from self._share(iter(chunks))
            return
        samples = (map if self._threads is None else self._threads.map)(sample_chunk, chunks)
        for (chunk, _, _), found in zip(chunks, samples, strict=True):
            yield _see(chunk, found)

    def _share(self, chunks: Iterator[Chunk]) -> Iterator[list[Outcome]]:
        """Deal chunks to the other processes, and open some here while none of them has an answer."""
        with selectors.DefaultSelector() as answers:
            for helper in self.helpers:
                answers.register(helper.connection, selectors.EVENT_READ, helper)
            is_done = False
            while not is_done or any(helper.given for helper in self.helpers):
                for helper in self.helpers:
                    while len(helper.given) < _AHEAD and (chunk := next(chunks, None)):
                        helper.give(chunk)
                if answered := answers.select(timeout=None if is_done else 0):
                    yield from (key.data.take() for key, _ in answered)
                elif own := next(chunks, None):
                    yield _see(own[0], sample_chunk(own))
                else:
                    is_done = True

    def __enter__(self) -> "Readers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the threads or processes; what has not begun is not done any more."""
        for helper in self.helpers:
            helper.end()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)


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
