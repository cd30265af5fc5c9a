"""GPU kernels of the engine, in Triton: rotary positions, activations, norms, attention of a step of decoding.

Each does in one pass over memory what transformers does in several. Half precision in memory, float32 in between.
Loaded only where a GPU is used; Triton's interpreter runs them on a CPU, where the tests compare them.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

KEYS = 32
"""Keys that are read at once."""
HIDDEN = -1e30
"""Score of a key that must not be seen: finite, so that a block without visible keys stays a number."""
PROGRAMS = 128
"""Programs that all prompts' keys are spread over, about: one for each of a large GPU's multiprocessors."""


@triton.jit  # type: ignore[untyped-decorator]
def _turn(
    x: tl.tensor, out: tl.tensor, c: tl.tensor, s: tl.tensor, token: tl.tensor, stride: tl.tensor,
    heads: tl.constexpr, half: tl.constexpr, padded: tl.constexpr, lanes: tl.constexpr,
) -> None:  # fmt: skip
    head, lane = tl.arange(0, padded)[:, None], tl.arange(0, lanes)[None, :]
    at, used = head * 2 * half + lane, (head < heads) & (lane < half)
    first = tl.load(x + token * stride + at, mask=used, other=0.0).to(tl.float32)
    second = tl.load(x + token * stride + at + half, mask=used, other=0.0).to(tl.float32)
    to = out + token * heads * 2 * half + at
    tl.store(to, first * c - second * s, mask=used)
    tl.store(to + half, second * c + first * s, mask=used)


@triton.jit  # type: ignore[untyped-decorator]
def _rotate(
    query: tl.tensor, key: tl.tensor, to_query: tl.tensor, to_key: tl.tensor, cos: tl.tensor, sin: tl.tensor,
    sign: tl.tensor, query_stride: tl.tensor, key_stride: tl.tensor,
    heads: tl.constexpr, groups: tl.constexpr, half: tl.constexpr, padded: tl.constexpr, padded_groups: tl.constexpr,
    lanes: tl.constexpr,
) -> None:  # fmt: skip
    token, lane = tl.program_id(0).to(tl.int64), tl.arange(0, lanes)
    c = tl.load(cos + token * 2 * half + lane, mask=lane < half, other=0.0).to(tl.float32)[None, :]
    s = tl.load(sin + token * 2 * half + lane, mask=lane < half, other=0.0).to(tl.float32)[None, :] * sign
    _turn(query, to_query, c, s, token, query_stride, heads, half, padded, lanes)
    _turn(key, to_key, c, s, token, key_stride, groups, half, padded_groups, lanes)


class Rotate(torch.autograd.Function):
    """Rotary position embedding of queries and keys.

    ``Rotate.apply(query, key, cos, sin)``: query (tokens, heads, head dim), key (tokens, key-value heads, head dim),
    cos and sin (tokens, head dim) whose halves are equal.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate."""
        ctx.save_for_backward(cos, sin)
        return _launch_rotate(query, key, cos, sin, 1.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        """Rotate back."""
        (query, key), (cos, sin) = gradients, ctx.saved_tensors
        return *_launch_rotate(query, key, cos, sin, -1.0), None, None


def _launch_rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, sign: float) -> tuple[Tensor, Tensor]:
    query, key = (x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous() for x in (query, key))
    (tokens, heads, size), groups = query.shape, key.shape[1]
    out = tuple(torch.empty(x.shape, device=x.device, dtype=x.dtype) for x in (query, key))
    _rotate[(tokens,)](
        query, key, *out, cos.contiguous(), sin.contiguous(), sign, query.stride(0), key.stride(0), heads, groups,
        size // 2, *(triton.next_power_of_2(number) for number in (heads, groups, size // 2)),
    )  # fmt: skip
    return out[0], out[1]


@triton.jit  # type: ignore[untyped-decorator]
def _gate(
    gate: tl.tensor, up: tl.tensor, out: tl.tensor, gate_stride: tl.tensor, up_stride: tl.tensor, width: tl.tensor,
    block: tl.constexpr,
) -> None:  # fmt: skip
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * block + tl.arange(0, block)
    g = tl.load(gate + row * gate_stride + at, mask=at < width, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_stride + at, mask=at < width, other=0.0).to(tl.float32)
    tl.store(out + row * width + at, g * tl.sigmoid(g) * u, mask=at < width)


@triton.jit  # type: ignore[untyped-decorator]
def _gate_back(
    grad: tl.tensor, gate: tl.tensor, up: tl.tensor, to_gate: tl.tensor, to_up: tl.tensor, count: tl.tensor,
    block: tl.constexpr,
) -> None:  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    d = tl.load(grad + at, mask=at < count, other=0.0).to(tl.float32)
    g = tl.load(gate + at, mask=at < count, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=at < count, other=0.0).to(tl.float32)
    s = tl.sigmoid(g)
    tl.store(to_up + at, d * g * s, mask=at < count)
    tl.store(to_gate + at, d * u * s * (1.0 + g * (1.0 - s)), mask=at < count)


class Gate(torch.autograd.Function):
    """``Gate.apply(gate, up)``: silu(gate) * up, of equal shapes (…, width)."""

    block = 2048

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """Activate."""
        ctx.save_for_backward(gate, up)
        out = torch.empty(gate.shape, device=gate.device, dtype=gate.dtype)
        width = gate.shape[-1]
        if gate.is_contiguous() and up.is_contiguous():  # wider rows are read by more at once, whatever their width
            width *= math.gcd(gate.numel() // width, 16)
            gate, up = gate.view(-1, width), up.view(-1, width)
        gate, up = gate.flatten(0, -2), up.flatten(0, -2)
        _gate[(len(gate), triton.cdiv(width, Gate.block))](
            gate, up, out, gate.stride(0), up.stride(0), width, Gate.block
        )
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor]:
        """Both gradients in one pass."""
        gate, up = (x.contiguous() for x in ctx.saved_tensors)
        to_gate, to_up, count = torch.empty_like(gate), torch.empty_like(up), gate.numel()
        _gate_back[(triton.cdiv(count, Gate.block),)](
            gradients[0].contiguous(), gate, up, to_gate, to_up, count, Gate.block
        )
        return to_gate, to_up


@triton.jit  # type: ignore[untyped-decorator]
def _quick_gelu(x: tl.tensor, count: tl.tensor, block: tl.constexpr) -> None:
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    value = tl.load(x + at, mask=at < count, other=0.0).to(tl.float32)
    tl.store(x + at, value * tl.sigmoid(1.702 * value), mask=at < count)


def quick_gelu_(x: Tensor) -> Tensor:
    """Multiply by the sigmoid of 1.702 times the same, in place; ``x`` is contiguous. Has no gradient."""
    _quick_gelu[(triton.cdiv(x.numel(), Gate.block),)](x, x.numel(), Gate.block)
    return x


@triton.jit  # type: ignore[untyped-decorator]
def _add_norm(
    x: tl.tensor, other: tl.tensor, weight: tl.tensor, bias: tl.tensor, total: tl.tensor, out: tl.tensor,
    x_stride: tl.tensor, other_stride: tl.tensor, epsilon: tl.tensor, width: tl.tensor,
    adds: tl.constexpr, centers: tl.constexpr, block: tl.constexpr,
) -> None:  # fmt: skip
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, block)
    value = tl.load(x + row * x_stride + at, mask=at < width, other=0.0)
    if adds:
        value += tl.load(other + row * other_stride + at, mask=at < width, other=0.0)
        tl.store(total + row * width + at, value, mask=at < width)
    value = value.to(tl.float32)
    if centers:
        value = tl.where(at < width, value - tl.sum(value, 0) / width, 0.0)
    scale = tl.rsqrt(tl.sum(value * value, 0) / width + epsilon)
    value *= scale * tl.load(weight + at, mask=at < width, other=0.0).to(tl.float32)
    if centers:
        value += tl.load(bias + at, mask=at < width, other=0.0).to(tl.float32)
    tl.store(out + row * width + at, value, mask=at < width)


def add_norm(
    x: Tensor, other: Tensor | None, weight: Tensor, epsilon: float, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Add, and norm the sum by its root mean square, or with a bias by its mean and variance. Has no gradient.

    Args:
        x: (…, width)
        other: Of the same shape; ``None``: nothing is added.
        weight: (width,)
        epsilon: Added to the mean square, or to the variance.
        bias: (width,); ``None``: the norm has none, and takes no mean away.

    Returns:
        The sum, and what the norm makes of it.
    """
    out = torch.empty(x.shape, device=x.device, dtype=x.dtype)
    total, width = (x if other is None else torch.empty_like(out)), x.shape[-1]
    rows, added = x.flatten(0, -2), (x if other is None else other).flatten(0, -2)
    _add_norm[(len(rows),)](
        rows, added, weight, weight if bias is None else bias, total, out, rows.stride(0), added.stride(0), epsilon,
        width, other is not None, bias is not None, triton.next_power_of_2(width), num_warps=8 if width > 1024 else 4,
    )  # fmt: skip
    return total, out


# Decoding: the rows of a prompt read its keys and values once -------------------------------------------------------


@triton.jit  # type: ignore[untyped-decorator]
def _attend_prompt(
    query: tl.tensor, keys: tl.tensor, values: tl.tensor, hidden: tl.tensor,
    sums: tl.tensor, tops: tl.tensor, totals: tl.tensor,
    scale: tl.tensor, length: tl.tensor, part: tl.tensor,
    slots: tl.constexpr, groups: tl.constexpr, repeats: tl.constexpr, size: tl.constexpr,
    queries: tl.constexpr, block: tl.constexpr,
) -> None:  # fmt: skip
    """One part of a prompt's keys, for some of the queries of its rows in one group of heads."""
    prompt, group = tl.program_id(0) // groups, tl.program_id(0) % groups
    here, piece = tl.program_id(1), tl.program_id(2)
    lanes = tl.arange(0, size)
    place = piece * queries + tl.arange(0, queries)
    used = place < slots * repeats
    row = prompt * slots + place // repeats
    head = row.to(tl.int64) * (groups * repeats) + group * repeats + place % repeats
    q = tl.load(query + head[:, None] * size + lanes[None, :], mask=used[:, None], other=0.0)
    top = tl.full((queries,), -1e30, tl.float32)
    total = tl.zeros((queries,), tl.float32)
    gathered = tl.zeros((queries, size), tl.float32)
    base = (prompt * groups + group).to(tl.int64) * length
    for start in range(here * part, tl.minimum((here + 1) * part, length), block):
        at = start + tl.arange(0, block)
        inside = at < length
        k = tl.load(keys + (base + at)[:, None] * size + lanes[None, :], mask=inside[:, None], other=0.0)
        score = tl.dot(q, tl.trans(k)) * scale
        seen = tl.load(hidden + prompt * length + at, mask=inside, other=-1e30).to(tl.float32)
        score = tl.maximum(score + seen[None, :], -1e30)
        highest = tl.maximum(top, tl.max(score, 1))
        weight = tl.exp(score - highest[:, None])
        shrink = tl.exp(top - highest)
        total = total * shrink + tl.sum(weight, 1)
        v = tl.load(values + (base + at)[:, None] * size + lanes[None, :], mask=inside[:, None], other=0.0)
        gathered = gathered * shrink[:, None] + tl.dot(weight.to(v.dtype), v)
        top = highest
    to = head * tl.num_programs(1) + here
    tl.store(sums + to[:, None] * size + lanes[None, :], gathered, mask=used[:, None])
    tl.store(tops + to, top, mask=used)
    tl.store(totals + to, total, mask=used)


@triton.jit  # type: ignore[untyped-decorator]
def _attend_own(
    query: tl.tensor, key: tl.tensor, value: tl.tensor, keys: tl.tensor, values: tl.tensor,
    steps: tl.tensor, sums: tl.tensor, tops: tl.tensor, totals: tl.tensor, out: tl.tensor,
    scale: tl.tensor, length: tl.tensor, parts: tl.tensor, value_stride: tl.tensor,
    slots: tl.constexpr, groups: tl.constexpr, repeats: tl.constexpr, size: tl.constexpr,
    queries: tl.constexpr, block: tl.constexpr,
) -> None:  # fmt: skip
    """A row's own keys, the newest among them, which is stored; then the sum with all parts of the prompt's."""
    row, group = tl.program_id(0), tl.program_id(1)
    lanes = tl.arange(0, size)
    place = tl.arange(0, queries)
    used = place < repeats
    head = row.to(tl.int64) * (groups * repeats) + group * repeats + place
    q = tl.load(query + head[:, None] * size + lanes[None, :], mask=used[:, None], other=0.0)
    newest = tl.load(steps)
    base = (((row // slots) * groups + group) * slots + row % slots).to(tl.int64) * length
    k_new = tl.load(key + (row * groups + group).to(tl.int64) * size + lanes)
    v_new = tl.load(value + row.to(tl.int64) * value_stride + group * size + lanes)
    tl.store(keys + (base + newest) * size + lanes, k_new)
    tl.store(values + (base + newest) * size + lanes, v_new)
    top = tl.sum(q.to(tl.float32) * k_new.to(tl.float32)[None, :], 1) * scale
    total = tl.full((queries,), 1.0, tl.float32)
    gathered = tl.zeros((queries, size), tl.float32) + v_new.to(tl.float32)[None, :]
    for start in range(0, newest, block):
        at = start + tl.arange(0, block)
        old = at < newest
        k = tl.load(keys + (base + at)[:, None] * size + lanes[None, :], mask=old[:, None], other=0.0)
        score = tl.where(old[None, :], tl.dot(q, tl.trans(k)) * scale, -1e30)
        highest = tl.maximum(top, tl.max(score, 1))
        weight = tl.exp(score - highest[:, None])
        shrink = tl.exp(top - highest)
        total = total * shrink + tl.sum(weight, 1)
        v = tl.load(values + (base + at)[:, None] * size + lanes[None, :], mask=old[:, None], other=0.0)
        gathered = gathered * shrink[:, None] + tl.dot(weight.to(v.dtype), v)
        top = highest
    for part in range(parts):
        at = head * parts + part
        other = tl.load(tops + at, mask=used, other=-1e30)
        highest = tl.maximum(top, other)
        mine, theirs = tl.exp(top - highest), tl.exp(other - highest)
        total = total * mine + tl.load(totals + at, mask=used, other=0.0) * theirs
        of_part = tl.load(sums + at[:, None] * size + lanes[None, :], mask=used[:, None], other=0.0)
        gathered = gathered * mine[:, None] + of_part * theirs[:, None]
        top = highest
    tl.store(out + head[:, None] * size + lanes[None, :], gathered / total[:, None], mask=used[:, None])


def decode(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prompt: tuple[Tensor, Tensor],
    own: tuple[Tensor, Tensor],
    hidden: Tensor,
    at: Tensor,
    scale: float,
) -> Tensor:
    """Attention of each row's newest token over its prompt and what it has written; the newest is stored on the way.

    Args:
        query: (rows, heads, head dim); rows of a prompt are neighbours.
        key: (rows, key-value heads, head dim), of the newest token.
        value: As ``key``.
        prompt: Keys and values of the prompts, (prompts, key-value heads, prompt length, head dim).
        own: Keys and values of the rows, (prompts, key-value heads, slots, new length, head dim).
        hidden: (prompts, prompt length): 0 for a key that is seen, very low for padding.
        at: (1,): place of the newest token.
        scale: Factor of the products.

    Returns:
        As ``query``.
    """
    query, key = query.contiguous(), key.contiguous()
    value = value if value.stride()[1:] == (value.shape[2], 1) else value.contiguous()
    (rows, heads, size), (prompts, groups, length, _) = query.shape, prompt[0].shape
    slots, new_length, repeats = own[0].shape[2], own[0].shape[3], heads // groups
    queries = min(64, max(16, triton.next_power_of_2(slots * repeats)))
    pieces = triton.cdiv(slots * repeats, queries)
    parts = max(1, min(triton.cdiv(length, KEYS), PROGRAMS // (prompts * groups * pieces)))
    part = triton.cdiv(triton.cdiv(length, parts), KEYS) * KEYS
    parts = triton.cdiv(length, part)
    sums = torch.empty((rows, heads, parts, size), device=query.device, dtype=torch.float32)
    tops, totals = (torch.empty((rows, heads, parts), device=query.device, dtype=torch.float32) for _ in range(2))
    shape = {"slots": slots, "groups": groups, "repeats": repeats, "size": size, "block": KEYS}
    _attend_prompt[(prompts * groups, parts, pieces)](
        query, *prompt, hidden, sums, tops, totals, scale, length, part, queries=queries, **shape
    )
    out = torch.empty_like(query)
    _attend_own[(rows, groups)](
        query, key, value, *own, at, sums, tops, totals, out, scale, new_length, parts, value.stride(0),
        queries=max(16, triton.next_power_of_2(repeats)), **shape,
    )  # fmt: skip
    return out
