"""Arrays to a GPU and back without waiting: through pinned memory, so that the next batch is prepared meanwhile."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_BUFFERS = 2


class Transfer:
    """Moves arrays between this process and a device; on a CPU nothing is moved.

    Args:
        device: ``cpu`` or a GPU.
    """

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._buffers = [torch.empty(0, dtype=torch.uint8)] * _BUFFERS
        self._free: list[Any] = [None] * _BUFFERS
        self._turn = 0

    def send(self, array: NDArray[Any]) -> torch.Tensor:
        """Copy an array to the device; it may be overwritten at once, unless the device is the CPU."""
        source = torch.from_numpy(array)
        if self._device.type == "cpu":
            return source
        self._turn = (self._turn + 1) % _BUFFERS
        if self._free[self._turn] is not None:
            self._free[self._turn].synchronize()  # its last content has left
        if self._buffers[self._turn].numel() < array.nbytes:
            self._buffers[self._turn] = torch.empty(array.nbytes, dtype=torch.uint8, pin_memory=True)
        staged = self._buffers[self._turn][: array.nbytes].view(source.dtype).view(source.shape)
        sent = staged.copy_(source).to(self._device, non_blocking=True)
        self._free[self._turn] = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._free[self._turn].record()
        return sent

    def fetch(self, tensor: torch.Tensor) -> Callable[[], NDArray[Any]]:
        """Begin to copy a tensor back; the function that is returned waits for it."""
        if self._device.type == "cpu":
            return tensor.numpy
        target = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        target.copy_(tensor, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()

        def wait() -> NDArray[Any]:
            arrived.synchronize()
            found: NDArray[Any] = np.array(target.numpy())
            return found

        return wait
