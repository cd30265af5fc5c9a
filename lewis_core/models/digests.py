"""Name weights by their values, fast enough to be done for every model that is loaded."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

CPU_CHUNK, GPU_CHUNK = 1 << 15, 1 << 22
"""Numbers that are mixed at once: on a CPU as many as its cache holds."""
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_FACTORS = (0x9E3779B97F4A7C15 - 2**64, 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)  # of splitmix64


class WeightsDigest:
    """Digest of a module's weights, which is computed again only when one of them was written or replaced.

    Equal values give equal digests on every device. It finds changes, and is no protection against malice.

    Args:
        module: The module.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self._stamps: list[tuple[int, int]] = []
        self._value = ""

    def value(self) -> str:
        """The digest, as hexadecimal digits."""
        stamps = weight_stamps(self._module)
        if stamps != self._stamps:
            self._value, self._stamps = self._compute(), stamps
        return self._value

    @torch.no_grad()
    def _compute(self) -> str:
        digest, sums = hashlib.sha256(), []
        for name, tensor in _tensors(self._module):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
            sums.append(checksum(tensor.detach()))
        digest.update(torch.stack(sums).cpu().numpy().tobytes() if sums else b"")
        return digest.hexdigest()


def weight_stamps(module: Any) -> list[tuple[int, int]]:
    """What differs as soon as a weight was written or replaced; no weight is read for it.

    Args:
        module: The module.

    Returns:
        Address and number of writes of every parameter and buffer.
    """
    return [(tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for _, tensor in _tensors(module)]


def _tensors(module: Any) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def checksum(tensor: Tensor) -> Tensor:
    """A number that changes with every value and every place: the sum of all values mixed with their places.

    Args:
        tensor: Numbers of one to eight bytes.

    Returns:
        A 64-bit integer (), which overflows silently, on the tensor's device.
    """
    words = tensor.contiguous().flatten().view(_WORDS[tensor.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    chunk = CPU_CHUNK if tensor.device.type == "cpu" else GPU_CHUNK
    for start in range(0, len(words), chunk):
        part = words[start : start + chunk].to(torch.int64)
        place = torch.arange(start + 1, start + 1 + len(part), device=tensor.device)
        mixed = (part * _FACTORS[0]) ^ (place * _FACTORS[1])
        mixed = (mixed ^ (mixed >> 29)) * _FACTORS[2]
        total += (mixed ^ (mixed >> 32)).sum()
    return total
