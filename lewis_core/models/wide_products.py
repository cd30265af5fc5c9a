"""Products of several rows with a weight on a CPU, by the library that uses the CPU's widest instructions.

Torch leaves products in float32 to MKL, which takes 256-bit instructions on AMD's CPUs, whatever they have. oneDNN,
which torch is built with, too, and which TorchInductor calls for the same purpose, takes 512-bit ones: 512 against 225
GFLOP/s on two cores of an EPYC (Zen 5). Both compute in float32. On Intel's CPUs both take the widest: MKL stays.

Whether oneDNN is asked depends on the weight, not on the number of rows, and what it finds for a row does not depend on
how many there are besides it, from two on (MKL's does below eight): a photo has the same features in any company. It
needs some 0.3 ms for each shape that it meets for the first time, and 10 us longer than MKL for a product of few rows.

What it makes for a shape it keeps, 0.4 MB each, for 1024 shapes and twice: a gigabyte where rows come in all numbers.
It is told to keep 64, which costs no time that can be measured.
"""

import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEAST_WEIGHT = 1 << 13
"""Numbers of a weight from which on its products gain."""
KEPT_SHAPES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}
"""Environment of oneDNN and of torch's layer above it, which each look into it at their first product."""


def widen(parts: Iterable[nn.Module]) -> int:
    """Let linear layers on a CPU compute so where no gradient is wanted; returns how many were changed now.

    Args:
        parts: Plain linear layers in them whose forward is their own are changed, but for parts that are compiled.
    """
    changed = 0
    for module in _not_compiled(parts):
        if type(module) is nn.Linear and module.weight.is_cpu and "forward" not in vars(module):
            vars(module)["forward"] = MethodType(_forward, module)
            changed += 1
    return changed


def _not_compiled(parts: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for module in parts:
        if module._compiled_call_impl is None:
            yield module
            yield from _not_compiled(module.children())


def _forward(self: Any, x: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        return F.linear(x, self.weight, self.bias)
    return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product x W' + bias, without gradients: (…, in), (out, in), (out,) → (…, out)."""
    if not takes(x, weight):
        return F.linear(x, weight, bias)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def add_product_(total: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Add x W' to (rows, out) in place, without gradients: (rows, in), (out, in)."""
    if not takes(x, weight):
        return total.addmm_(x, weight.t())
    return total.add_(linear(x, weight))


def takes(x: Tensor, weight: Tensor) -> bool:
    """Whether a product is one that gains: of several rows, in float32, on such a CPU.

    Of other layouts than these oneDNN makes a thousand times as much work, not an error.
    """
    return (
        x.is_cpu
        and weight.is_cpu
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > x.shape[-1]
        and weight.numel() >= LEAST_WEIGHT
        and x.stride(-1) == 1
        and (weight.is_contiguous() or weight.t().is_contiguous())
        and not torch.is_autocast_enabled("cpu")
        and _is_wide()
    )


@cache
def _is_wide() -> bool:
    cpu, library = Path("/proc/cpuinfo"), cast("Any", torch.backends.mkldnn)
    is_amd = cpu.exists() and "AuthenticAMD" in cpu.read_text(encoding="utf-8")
    if not is_amd or torch.backends.cpu.get_cpu_capability() != "AVX512" or not library.is_available():
        return False
    for name, shapes in KEPT_SHAPES.items():
        os.environ.setdefault(name, shapes)
    return hasattr(torch.ops.mkldnn, "_linear_pointwise")
