"""GPU kernels for a step of decoding with adapters: their second halves (LoRA's B) join the work after the product.

A stack's product (:mod:`lewis_core.models.stacking`) leaves for every row the layers' outputs and, behind them, what
the adapters' first halves make of it. The second halves are small products, which take longer to start than to
compute: here they are computed where the outputs are read next, by the gated activation and by the rotation.
Triton's interpreter runs these on a CPU, where the tests compare them.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 64
"""Outputs of a program of the gated activation."""
MOST_ROWS = 256
"""With more rows a product of its own is faster: a program reads the second halves once for 64 of them."""


@triton.jit  # type: ignore[untyped-decorator]
def _gate(
    rows: tl.tensor, after: tl.tensor, out: tl.tensor, stride: tl.tensor, after_stride: tl.tensor,
    count: tl.tensor, width: tl.tensor, block: tl.constexpr, columns: tl.constexpr, rank: tl.constexpr,
) -> None:  # fmt: skip
    row = tl.program_id(0) * block + tl.arange(0, block)
    column, inner = tl.program_id(1) * columns + tl.arange(0, columns), tl.arange(0, rank)
    is_row, is_column = (row < count)[:, None], column < width
    start = rows + row.to(tl.int64)[:, None] * stride
    used = is_row & is_column[None, :]
    gate = tl.load(start + column[None, :], mask=used, other=0.0).to(tl.float32)
    up = tl.load(start + width + column[None, :], mask=used, other=0.0).to(tl.float32)
    of_gate = tl.load(start + 2 * width + inner[None, :], mask=is_row, other=0.0)
    of_up = tl.load(start + 2 * width + rank + inner[None, :], mask=is_row, other=0.0)
    second = after + column[:, None] * after_stride + inner[None, :]
    gate += tl.dot(of_gate, tl.trans(tl.load(second, mask=is_column[:, None], other=0.0)))
    second += width * after_stride + rank
    up += tl.dot(of_up, tl.trans(tl.load(second, mask=is_column[:, None], other=0.0)))
    tl.store(out + row.to(tl.int64)[:, None] * width + column[None, :], gate * tl.sigmoid(gate) * up, mask=used)


def gate(rows: Tensor, after: Tensor, rank: int) -> Tensor:
    """Gated activation of an MLP's two inputs, which adapters of the same rank change.

    Args:
        rows: (rows, 2 width + 2 rank): gate, up, and what the adapters' first halves make of each.
        after: (2 width, 2 rank): the second halves, scaled; only its diagonal blocks are read.
        rank: Of each adapter.

    Returns:
        (rows, width)
    """
    count, width = len(rows), len(after) // 2
    out = torch.empty((count, width), device=rows.device, dtype=rows.dtype)
    block = _block(count)
    _gate[(triton.cdiv(count, block), triton.cdiv(width, COLUMNS))](
        rows, after, out, rows.stride(0), after.stride(0), count, width, block, COLUMNS, rank
    )
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _heads(
    rows: tl.tensor, after: tl.tensor, query: tl.tensor, key: tl.tensor, value: tl.tensor, cos: tl.tensor,
    sin: tl.tensor, stride: tl.tensor, after_stride: tl.tensor, angle_stride: tl.tensor, count: tl.tensor,
    heads: tl.constexpr, groups: tl.constexpr, half: tl.constexpr, block: tl.constexpr, rank: tl.constexpr,
) -> None:  # fmt: skip
    row, head = tl.program_id(0) * block + tl.arange(0, block), tl.program_id(1)
    lanes, inner = tl.arange(0, half), tl.arange(0, rank)
    used = (row < count)[:, None]
    part = (head >= heads).to(tl.int32) + (head >= heads + groups).to(tl.int32)  # queries, keys, values
    start = rows + row.to(tl.int64)[:, None] * stride
    column = head * 2 * half + lanes
    first = tl.load(start + column[None, :], mask=used, other=0.0).to(tl.float32)
    second = tl.load(start + half + column[None, :], mask=used, other=0.0).to(tl.float32)
    place = (heads + 2 * groups) * 2 * half + part * rank
    of_inner = tl.load(start + place + inner[None, :], mask=used, other=0.0)
    halves = after + column[:, None] * after_stride + part * rank + inner[None, :]
    first += tl.dot(of_inner, tl.trans(tl.load(halves)))
    second += tl.dot(of_inner, tl.trans(tl.load(halves + half * after_stride)))
    if part == 2:
        to = value + (row.to(tl.int64)[:, None] * groups + head - heads - groups) * 2 * half + lanes[None, :]
        tl.store(to, first, mask=used)
        tl.store(to + half, second, mask=used)
    else:
        angle = row.to(tl.int64)[:, None] * angle_stride + lanes[None, :]
        c = tl.load(cos + angle, mask=used, other=0.0).to(tl.float32)
        s = tl.load(sin + angle, mask=used, other=0.0).to(tl.float32)
        if part == 0:
            to = query + (row.to(tl.int64)[:, None] * heads + head) * 2 * half + lanes[None, :]
            tl.store(to, first * c - second * s, mask=used)
            tl.store(to + half, second * c + first * s, mask=used)
        else:
            to = key + (row.to(tl.int64)[:, None] * groups + head - heads) * 2 * half + lanes[None, :]
            tl.store(to, first * c - second * s, mask=used)
            tl.store(to + half, second * c + first * s, mask=used)


def heads(
    rows: Tensor, after: Tensor, rank: int, cos: Tensor, sin: Tensor, shape: tuple[int, int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, which adapters of the same rank change; queries and keys are rotated.

    Args:
        rows: (rows, (heads + 2 groups) size + 3 rank): queries, keys, values, and what the adapters' first halves make
            of each.
        after: ((heads + 2 groups) size, 3 rank): the second halves, scaled; only its diagonal blocks are read.
        rank: Of each adapter.
        cos: (rows or 1, size); its halves are equal.
        sin: As ``cos``.
        shape: Heads, key-value heads (groups), and size of a head.

    Returns:
        (rows, heads, size), (rows, groups, size), (rows, groups, size)
    """
    count, (num_heads, groups, size) = len(rows), shape
    made: list[Any] = [
        torch.empty((count, number, size), device=rows.device, dtype=rows.dtype)
        for number in (num_heads, groups, groups)
    ]
    block, of_row = _block(count), cos.stride(0) if len(cos) > 1 else 0
    _heads[(triton.cdiv(count, block), num_heads + 2 * groups)](
        rows, after, *made, cos, sin, rows.stride(0), after.stride(0), of_row, count,
        num_heads, groups, size // 2, block, rank,
    )  # fmt: skip
    return made[0], made[1], made[2]


def _block(count: int) -> int:
    """Rows of a program."""
    return int(min(64, max(16, triton.next_power_of_2(count))))
