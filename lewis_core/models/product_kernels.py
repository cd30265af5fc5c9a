"""Matrix products of few rows, for steps of decoding, whose time is that of reading the weights.

A program reads 64 rows of a weight matrix from end to end, in pieces that are on their way while others are multiplied.
Where these are fewer than a GPU has multiprocessors, the inputs are cut into parts: the sums of each part are added by
whatever reads them next, here together with an adapter's second half. Triton's interpreter runs these on a CPU, where
the tests compare them.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

OUTPUTS, INPUTS = 64, 128
"""Numbers of a piece of the weights."""
MOST_ROWS = 64
"""With more rows the library's products are as fast."""
STAGES = 5
"""Pieces that are on their way at once, if shared memory has room for them."""
LEAST_STAGES = 3


@dataclass(frozen=True)
class Plan:
    """How a product is divided."""

    parts: int
    """Of the inputs."""
    stages: int


def plan(rows: int, outputs: int, inputs: int, device: torch.device) -> Plan | None:
    """Divide a product among a GPU's multiprocessors.

    Args:
        rows: Of the input.
        outputs: Rows of the weights.
        inputs: Their columns.
        device: The GPU.

    Returns:
        ``None`` if the library's product is to be used.
    """
    return _plan(_padded(rows), outputs, inputs, device) if rows <= MOST_ROWS else None


@functools.cache
def _plan(rows: int, outputs: int, inputs: int, device: torch.device) -> Plan | None:
    gpu: Any = torch.cuda.get_device_properties(device)
    piece = 2 * INPUTS * (OUTPUTS + rows)  # bytes, of weights and of rows
    stages = min(STAGES, gpu.shared_memory_per_block_optin // piece)
    if inputs % INPUTS or stages < LEAST_STAGES:
        return None
    pieces, most = inputs // INPUTS, max(1, gpu.multi_processor_count // triton.cdiv(outputs, OUTPUTS))
    parts = max(part for part in range(1, min(most, pieces) + 1) if pieces % part == 0)
    return Plan(parts, stages)


@triton.jit  # type: ignore[untyped-decorator]
def _multiply(
    weight: tl.tensor, x: tl.tensor, bias: tl.tensor, out: tl.tensor, weight_stride: tl.tensor, x_stride: tl.tensor,
    count: tl.tensor, width: tl.tensor, size: tl.tensor,
    has_bias: tl.constexpr, rows: tl.constexpr, outputs: tl.constexpr, inputs: tl.constexpr,
) -> None:  # fmt: skip
    column, row = tl.program_id(0) * outputs + tl.arange(0, outputs), tl.arange(0, rows)
    inner = tl.program_id(1) * size + tl.arange(0, inputs)
    weights = weight + tl.minimum(column, width - 1).to(tl.int64)[:, None] * weight_stride + inner[None, :]
    values = x + tl.minimum(row, count - 1).to(tl.int64)[None, :] * x_stride + inner[:, None]
    total = tl.zeros((outputs, rows), tl.float32)
    for start in range(0, size, inputs):
        total = tl.dot(tl.load(weights + start), tl.load(values + start), total)
    is_column = column < width
    if has_bias:
        total += tl.load(bias + column, mask=is_column, other=0.0).to(tl.float32)[:, None]
    to = out + (tl.program_id(1) * count + row[None, :]).to(tl.int64) * width + column[:, None]
    tl.store(to, total, mask=is_column[:, None] & (row < count)[None, :])


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, chosen: Plan) -> Tensor:
    """``x @ weight.T + bias``, or what each part of the inputs adds to it. Has no gradient.

    Args:
        x: (rows, inputs), at most ``MOST_ROWS``; neighbours in a row are neighbours in memory.
        weight: (outputs, inputs), likewise.
        bias: (outputs,); only with a single part.
        chosen: How it is divided.

    Returns:
        (parts, rows, outputs): in float32, or in the precision of ``x`` if it is a single part.
    """
    (count, size), width = x.shape, len(weight)
    dtype = x.dtype if chosen.parts == 1 else torch.float32
    out = torch.empty((chosen.parts, count, width), device=x.device, dtype=dtype)
    _multiply[(triton.cdiv(width, OUTPUTS), chosen.parts)](
        weight, x, bias, out, weight.stride(0), x.stride(0), count, width, size // chosen.parts,
        bias is not None, _padded(count), OUTPUTS, INPUTS, num_stages=chosen.stages, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _join(
    sums: tl.tensor, after: tl.tensor, out: tl.tensor, after_stride: tl.tensor, count: tl.tensor, width: tl.tensor,
    parts: tl.constexpr, rows: tl.constexpr, outputs: tl.constexpr, rank: tl.constexpr,
) -> None:  # fmt: skip
    column, row, inner = tl.program_id(0) * outputs + tl.arange(0, outputs), tl.arange(0, rows), tl.arange(0, rank)
    is_column, is_row = (column < width)[None, :], (row < count)[:, None]
    total = tl.zeros((rows, outputs), tl.float32)
    of_inner = tl.zeros((rows, rank), tl.float32)
    for part in tl.static_range(parts):
        start = sums + (part * count + row.to(tl.int64)[:, None]) * (width + rank)
        total += tl.load(start + column[None, :], mask=is_row & is_column, other=0.0).to(tl.float32)
        of_inner += tl.load(start + width + inner[None, :], mask=is_row, other=0.0).to(tl.float32)
    second = tl.load(after + column[None, :] * after_stride + inner[:, None], mask=is_column, other=0.0)
    total = tl.dot(of_inner.to(second.dtype), second, total)
    tl.store(out + row.to(tl.int64)[:, None] * width + column[None, :], total, mask=is_row & is_column)


def join(sums: Tensor, after: Tensor) -> Tensor:
    """Outputs of a layer with an adapter, from the sums of each part of its inputs.

    Args:
        sums: (parts, rows, outputs + rank): the layer's outputs, then what the adapter's first half makes of the input.
        after: (outputs, rank): the second half, scaled; the rank is a power of two, 16 or more.

    Returns:
        (rows, outputs), in the precision of ``after``
    """
    (parts, count, _), (width, rank) = sums.shape, after.shape
    out = torch.empty((count, width), device=sums.device, dtype=after.dtype)
    _join[(triton.cdiv(width, OUTPUTS),)](
        sums, after, out, after.stride(0), count, width, parts, _padded(count), OUTPUTS, rank
    )
    return out


def _padded(rows: int) -> int:
    return int(max(16, triton.next_power_of_2(rows)))
