"""Work ahead in threads, in order and with bounded memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(items: Iterable[Item], function: Callable[[Item], Result], workers: int, ahead: int) -> Iterator[Result]:
    """Apply a function in threads, in order, with at most ``ahead`` results waiting.

    Args:
        items: Arguments.
        function: Called in a thread; what it raises is raised here, at its turn.
        workers: Threads.
        ahead: Bound on results that are made but not yet taken, so that memory stays bounded.

    Yields:
        Results, in the order of the items.
    """
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
