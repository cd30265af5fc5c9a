"""Many items are put to a model in blocks, so that a kill costs seconds and one bad item costs only itself.

A block is as long as takes about a second. What the model refuses (a photo that cannot be read, an item that does not
fit into memory) is narrowed down to the single item, whose reply is a :class:`Refused` with the reason. An outage is
no refusal: it raises. So do too many refusals, because then something else is wrong than the items.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from lewis_core.errors import EvaluationError, ImageError, ListenerBusyError, ListenerError, ListenerUnavailableError

logger = logging.getLogger(__name__)
FIRST_BLOCK, LARGEST_BLOCK = 16, 8192
"""Rows (questions, or pairs of image and description) of the first block and of the largest."""
QUICK_S, SLOW_S = 1.0, 4.0
"""Blocks that take less than the first grow, those that take more than the second shrink."""
REFUSALS = frozenset({403, 404, 413, 422, 500})
"""Statuses that speak of the items asked about, not of the service's health."""
MAX_REFUSED = 0.1
"""More refusals than this share of all items end the evaluation."""
Unit = TypeVar("Unit")
Reply = TypeVar("Reply")


class Refused(NamedTuple):
    """The reply to an item that the model could not answer."""

    reason: str


def put_in_blocks(
    call: Callable[[Sequence[Unit]], Sequence[Reply]], units: Sequence[Unit], sizes: Sequence[int]
) -> Iterator[Reply | Refused]:
    """Put units to a model.

    Args:
        call: Asks the model; one reply per unit, in their order.
        units: Items in any order.
        sizes: Rows of each.

    Yields:
        One reply per unit, in their order.

    Raises:
        ListenerError: If the service does not answer, or refuses all requests (no token, another program).
        EvaluationError: If more than a tenth of the units is refused.
    """
    refused, answered = 0, 0
    for block in _paced(units, sizes):
        for reply in _narrow_down(call, block):
            if isinstance(reply, Refused):
                refused += 1
                logger.warning("an item could not be answered: %s", reply.reason)
                if refused > max(1, MAX_REFUSED * len(units)) or refused == len(units):
                    raise EvaluationError(
                        f"{refused} of {answered + refused} items could not be answered, which is more than one in "
                        f"{1 / MAX_REFUSED:.0f}; the last: {reply.reason}; mend that and run the evaluation again"
                    )
            else:
                answered += 1
            yield reply


def _narrow_down(call: Callable[[Sequence[Unit]], Sequence[Reply]], block: Sequence[Unit]) -> Iterator[Reply | Refused]:
    """Ask for a block; if it is refused, for its halves, down to single units."""
    try:
        replies: Sequence[Reply | Refused] = call(block)
    except (ImageError, ListenerError) as error:
        if not is_refusal(error):
            raise
        if len(block) == 1:
            replies = [Refused(str(error))]
        else:
            half = len(block) // 2
            yield from _narrow_down(call, block[:half])
            yield from _narrow_down(call, block[half:])
            return
    yield from replies


def is_refusal(error: Exception) -> bool:
    """Whether an error is about what was asked; an outage, or a service that answers nobody, is not."""
    if isinstance(error, ListenerBusyError | ListenerUnavailableError):
        return False
    return isinstance(error, ImageError) or (isinstance(error, ListenerError) and error.status in REFUSALS)


def _paced(units: Sequence[Unit], sizes: Sequence[int]) -> Iterator[Sequence[Unit]]:
    """Cut units into blocks whose length follows from how long the last one took."""
    limit, start = FIRST_BLOCK, 0
    while start < len(units):
        stop, rows = start + 1, sizes[start]
        while stop < len(units) and rows + sizes[stop] <= limit:
            rows += sizes[stop]
            stop += 1
        began = time.monotonic()
        yield units[start:stop]
        took_s = time.monotonic() - began
        if took_s < QUICK_S:
            limit = min(LARGEST_BLOCK, 2 * limit)
        elif took_s > SLOW_S:
            limit = max(FIRST_BLOCK, limit // 2)
        start = stop
