"""GPU kernels that do the adapters' second halves (LoRA's B) on the way: where outputs are read next.

In a step of decoding they are small products, which take longer to start than to compute. With many rows they would
read and write all outputs once more. Here the gated activation and the rotation add them to what they read.
A stack's product (:mod:`lewis_core.models.stacking`) leaves for every row the layers' outputs and, behind them, what
the adapters' first halves make of it; in training they come apart (:mod:`lewis_core.models.adapted`).
Triton's interpreter runs these on a CPU, where the tests compare them.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = COLUMNS = 64
"""Of a program of the gated activation, at most."""
MOST_ROWS = 256
"""With more rows, stacked layers' second halves are faster as products of their own."""


@triton.jit  # type: ignore[untyped-decorator]
def _whole(
    outputs: tl.tensor, of_inner: tl.tensor, after: tl.tensor, at: tl.tensor, used: tl.tensor, column: tl.tensor,
    after_stride: tl.tensor, width: tl.tensor, rank: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """A tile of a layer's outputs, its adapter's second half added."""
    out = tl.load(outputs + at, mask=used, other=0.0).to(tl.float32)
    second = after + column[:, None] * after_stride + tl.arange(0, rank)[None, :]
    return tl.dot(of_inner, tl.trans(tl.load(second, mask=(column < width)[:, None], other=0.0)), out)


@triton.jit  # type: ignore[untyped-decorator]
def _gate(
    gate: tl.tensor, up: tl.tensor, inner: tl.tensor, of_gate: tl.tensor, of_up: tl.tensor, out: tl.tensor,
    stride: tl.tensor, inner_stride: tl.tensor, after_stride: tl.tensor, count: tl.tensor, width: tl.tensor,
    block: tl.constexpr, columns: tl.constexpr, rank: tl.constexpr,
) -> None:  # fmt: skip
    row = tl.program_id(1) * block + tl.arange(0, block)
    is_row, row = (row < count)[:, None], row.to(tl.int64)[:, None]
    first = inner + row * inner_stride + tl.arange(0, rank)[None, :]
    gate_inner, up_inner = tl.load(first, mask=is_row, other=0.0), tl.load(first + rank, mask=is_row, other=0.0)
    column = tl.program_id(0) * columns + tl.arange(0, columns)
    used, at = is_row & (column < width)[None, :], row * stride + column[None, :]
    g = _whole(gate, gate_inner, of_gate, at, used, column, after_stride, width, rank)
    u = _whole(up, up_inner, of_up, at, used, column, after_stride, width, rank)
    tl.store(out + row * width + column[None, :], g * tl.sigmoid(g) * u, mask=used)


@triton.jit  # type: ignore[untyped-decorator]
def _gate_back(
    grad: tl.tensor, of_inner: tl.tensor, before: tl.tensor, gate: tl.tensor, up: tl.tensor, inner: tl.tensor,
    of_gate: tl.tensor, of_up: tl.tensor, to_gate: tl.tensor, of_inner_stride: tl.tensor, before_stride: tl.tensor,
    inner_stride: tl.tensor, after_stride: tl.tensor, count: tl.tensor, width: tl.tensor,
    block: tl.constexpr, columns: tl.constexpr, rank: tl.constexpr,
) -> None:  # fmt: skip
    row = tl.program_id(1) * block + tl.arange(0, block)
    is_row, row = (row < count)[:, None], row.to(tl.int64)[:, None]
    first = inner + row * inner_stride + tl.arange(0, rank)[None, :]
    gate_inner, up_inner = tl.load(first, mask=is_row, other=0.0), tl.load(first + rank, mask=is_row, other=0.0)
    lanes = tl.arange(0, rank)
    down_inner = tl.load(of_inner + row * of_inner_stride + lanes[None, :], mask=is_row, other=0.0)
    column = tl.program_id(0) * columns + tl.arange(0, columns)
    used, at = is_row & (column < width)[None, :], row * width + column[None, :]
    g = _whole(gate, gate_inner, of_gate, at, used, column, after_stride, width, rank)
    u = _whole(up, up_inner, of_up, at, used, column, after_stride, width, rank)
    first_half = before + lanes[:, None] * before_stride + column[None, :]
    d = tl.load(grad + at, mask=used, other=0.0).to(tl.float32)
    d = tl.dot(down_inner, tl.load(first_half, mask=(column < width)[None, :], other=0.0), d)
    s = tl.sigmoid(g)
    tl.store(to_gate + at, d * u * s * (1.0 + g * (1.0 - s)), mask=used)
    tl.store(grad + at, d * g * s, mask=used)


def gate(rows: Tensor, after: Tensor, rank: int) -> Tensor:
    """Gated activation of an MLP's two inputs, which adapters of the same rank change.

    Args:
        rows: (rows, 2 width + 2 rank): gate, up, and what the adapters' first halves make of each.
        after: (2 width, 2 rank): the second halves, scaled; only its diagonal blocks are read.
        rank: Of each adapter.

    Returns:
        (rows, width)
    """
    width = len(after) // 2
    gate, up, inner = rows[:, :width], rows[:, width : 2 * width], rows[:, 2 * width : 2 * (width + rank)]
    return activate(gate, up, inner, (after[:width, :rank], after[width:, rank:]))


def activate(gate: Tensor, up: Tensor, inner: Tensor, after: tuple[Tensor, Tensor]) -> Tensor:
    """Gated activation, silu(gate) * up, of outputs that adapters of the same rank change. Has no gradient.

    Args:
        gate: (rows, width), with neighbouring columns.
        up: As ``gate``, of the same strides.
        inner: (rows, 2 rank): what the adapters' first halves make of each, scaled, if ``after`` is not.
        after: The second halves, (width, rank) each, of the same strides.

    Returns:
        (rows, width)
    """
    out = torch.empty(gate.shape, device=gate.device, dtype=gate.dtype)
    strides = (gate.stride(0), inner.stride(0), after[0].stride(0))
    _launch(_gate, (gate, up, inner, *after, out), strides, gate.shape, after[0].shape[1])
    return out


def activate_back(
    grad: Tensor,
    following: tuple[Tensor, Tensor],
    gate: Tensor,
    up: Tensor,
    inner: Tensor,
    after: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Gradients of what :func:`activate` takes as ``gate`` and ``up``, computed from the same.

    Args:
        grad: Gradient of its result but for what comes through the next layer's adapter, (rows, width); becomes that of
            ``up``.
        following: Gradient of what that adapter's first half makes of the result, (rows, rank), and this half, (rank,
            width), one of both scaled; of the same rank.
        gate: (rows, width), contiguous as are ``grad`` and ``up``.
        up: As ``gate``.
        inner: As for :func:`activate`.
        after: As for :func:`activate`.

    Returns:
        (rows, width) each
    """
    to_gate = torch.empty_like(gate)
    strides = (*(x.stride(0) for x in following), inner.stride(0), after[0].stride(0))
    tensors = (grad, *following, gate, up, inner, *after, to_gate)
    _launch(_gate_back, tensors, strides, gate.shape, after[0].shape[1])
    return to_gate, grad


def _launch(kernel: Any, tensors: Sequence[Tensor], strides: Sequence[int], shape: torch.Size, rank: int) -> None:
    """Run a kernel of the gated activation for outputs of a shape (rows, width)."""
    count, width = shape
    block = _block(count)
    grid = (triton.cdiv(width, COLUMNS), triton.cdiv(count, block))
    kernel[grid](*tensors, *strides, count, width, block, COLUMNS, rank)


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
    return int(min(ROWS, max(16, triton.next_power_of_2(count))))
