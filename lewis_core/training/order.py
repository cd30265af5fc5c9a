"""The order in which training sees its rows, which a run that goes on finds again."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    RepeatSampler: Any  # TRL exports it without types
else:
    from trl.trainer.utils import RepeatSampler


class EpochSampler(RepeatSampler):  # type: ignore[misc]
    """TRL's sampler, whose order depends on the epoch and not on how often this process has iterated over it.

    Stock TRL draws each epoch's order from one generator, so that a run which goes on in its second epoch sees the
    order of the first one again. Runs that are not interrupted see the same order with both.

    Args:
        epoch: Says which epoch begins.
        arguments: As for TRL's sampler; ``seed`` is needed.
    """

    def __init__(self, *, epoch: Callable[[], int], **arguments: Any) -> None:
        super().__init__(**arguments)
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(self.seed)
            for _ in range(self._epoch()):
                torch.randperm(self.num_samples, generator=self.generator)
        yield from super().__iter__()
