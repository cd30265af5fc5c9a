"""GPU kernels that choose every row's next token: two passes over the logits instead of some thirty.

The vocabulary is cut into parts. The first kernel finds each part's largest logit and the sum of its exponentials; the
second, one program a row, draws a part, then a token in it, as :func:`lewis_core.models.decoding.draw` does, and moves
the row's state on. Sums of parts are in float64. Triton's interpreter runs these on a CPU, where tests compare them.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

PART = 4096
"""Tokens of a part of the vocabulary."""


@triton.jit  # type: ignore[untyped-decorator]
def _scaled(
    logits: tl.tensor, hidden: tl.tensor, start: tl.tensor, at: tl.tensor, warmth: tl.tensor, vocabulary: tl.tensor
) -> tl.tensor:
    """A part's logits at a row's temperature; tokens that are never written get minus infinity."""
    is_hidden = tl.load(hidden + at, mask=at < vocabulary, other=1)
    x = tl.load(logits + start + at, mask=at < vocabulary, other=0.0).to(tl.float32)
    return tl.where(is_hidden != 0, float("-inf"), x / tl.where(warmth > 0, warmth, 1.0))


@triton.jit  # type: ignore[untyped-decorator]
def _sum_parts(
    logits: tl.tensor, hidden: tl.tensor, warmths: tl.tensor, tops: tl.tensor, sums: tl.tensor, places: tl.tensor,
    stride: tl.tensor, vocabulary: tl.tensor, part: tl.constexpr,
) -> None:  # fmt: skip
    row, number = tl.program_id(0), tl.program_id(1)
    at = number * part + tl.arange(0, part)
    x = _scaled(logits, hidden, row.to(tl.int64) * stride, at, tl.load(warmths + row), vocabulary)
    top = tl.max(x, 0)
    to = row * tl.num_programs(1) + number
    tl.store(tops + to, top)
    tl.store(sums + to, tl.sum(tl.exp(x - tl.where(top == float("-inf"), 0.0, top)), 0))
    tl.store(places + to, tl.min(tl.where(x == top, at, number * part + part - 1), 0))


@triton.jit  # type: ignore[untyped-decorator]
def _first_past(weight: tl.tensor, number: tl.tensor, goal: tl.tensor) -> tl.tensor:
    """Number of the first weight with which the running sum exceeds a goal; its own is positive, whatever rounding."""
    past = (tl.cumsum(weight, 0) > goal) & (weight > 0)
    last = tl.max(tl.where(weight > 0, number, 0), 0)
    return tl.min(tl.where(past, number, last), 0)


@triton.jit  # type: ignore[untyped-decorator]
def _choose(
    logits: tl.tensor, hidden: tl.tensor, warmths: tl.tensor, chances: tl.tensor, steps: tl.tensor,
    tops: tl.tensor, sums: tl.tensor, places: tl.tensor,
    ends: tl.tensor, limits: tl.tensor, tokens: tl.tensor, logps: tl.tensor, lengths: tl.tensor, done: tl.tensor,
    newest: tl.tensor, positions: tl.tensor,
    stride: tl.tensor, vocabulary: tl.tensor, parts: tl.tensor, length: tl.tensor, num_ends: tl.tensor,
    draws: tl.constexpr, part: tl.constexpr, padded: tl.constexpr,
) -> None:  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    number, step, warmth = tl.arange(0, padded), tl.load(steps), tl.load(warmths + row)
    top = tl.load(tops + row * parts + number, mask=number < parts, other=float("-inf"))
    highest = tl.max(top, 0)
    weight = tl.load(sums + row * parts + number, mask=number < parts, other=0.0).to(tl.float64)
    weight *= tl.exp(top - highest).to(tl.float64)
    whole = tl.sum(weight, 0)
    token = tl.load(places + row * parts + tl.min(tl.where(top == highest, number, parts - 1), 0))
    if draws:
        goal = tl.load(chances + row * length + step) * whole
        here = _first_past(weight, number, goal)
        share = (goal - tl.sum(tl.where(number < here, weight, 0.0), 0)) / tl.sum(
            tl.where(number == here, weight, 0.0), 0
        )
        inside = tl.arange(0, part)
        x = _scaled(logits, hidden, row * stride, here * part + inside, warmth, vocabulary)
        single = tl.exp(x - tl.max(x, 0)).to(tl.float64)
        share = tl.minimum(tl.maximum(share, 0.0), 1.0)  # rounding may leave it outside
        drawn = here * part + _first_past(single, inside, share * tl.sum(single, 0))
        token = tl.where(warmth > 0, drawn, token)
    is_done = tl.load(done + row) != 0
    token = tl.where(is_done, 0, tl.minimum(token, vocabulary - 1))
    chosen = tl.load(logits + row * stride + token).to(tl.float32) / tl.where(warmth > 0, warmth, 1.0)
    written = tl.load(lengths + row) + tl.where(is_done, 0, 1)
    is_done = is_done | (written >= tl.load(limits + row))
    for end in range(num_ends):
        is_done = is_done | (tl.load(ends + end) == token)
    tl.store(tokens + row * length + step, token.to(tl.int64))
    tl.store(logps + row * length + step, chosen - highest - tl.log(whole).to(tl.float32))
    tl.store(lengths + row, written)
    tl.store(done + row, is_done.to(tl.int1))
    tl.store(newest + row, token.to(tl.int64))
    tl.store(positions + row, tl.load(positions + row) + 1)


@dataclass(frozen=True)
class Rows:
    """State of rows that write; all tensors are contiguous and on one device."""

    warmth: Tensor
    """(rows,), float32: temperature; 0 takes the likeliest token."""
    chances: Tensor
    """(rows, length), float64: uniform in [0, 1), one for each token."""
    limits: Tensor
    """(rows,), int64: most tokens of each."""
    tokens: Tensor
    """(rows, length), int64."""
    logps: Tensor
    """(rows, length), float32: log-probabilities of the tokens."""
    lengths: Tensor
    """(rows,), int64: tokens that were written."""
    done: Tensor
    """(rows,), bool: ended, or empty."""
    newest: Tensor
    """(rows,), int64: the token that was written last."""
    positions: Tensor
    """(rows,), int64: its position."""


def choose(logits: Tensor, hidden: Tensor, ends: Tensor, at: Tensor, rows: Rows, *, draws: bool) -> None:
    """Choose a token a row, and write it down.

    Args:
        logits: (rows, vocabulary), in any precision; neighbours in a row are neighbours in memory.
        hidden: (vocabulary,), bool: tokens that are never written; at least one is not hidden.
        ends: (ends,), int64: tokens that end a row.
        at: (1,), int64: place of the token among those of its row.
        rows: State, which is changed.
        draws: Whether any row has a temperature.
    """
    (count, vocabulary), length = logits.shape, rows.tokens.shape[1]
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    parts = triton.cdiv(vocabulary, PART)
    tops, sums = (torch.empty((count, parts), device=logits.device) for _ in range(2))
    places = torch.empty((count, parts), device=logits.device, dtype=torch.int32)
    _sum_parts[(count, parts)](
        logits, hidden, rows.warmth, tops, sums, places, logits.stride(0), vocabulary, PART, num_warps=8
    )
    _choose[(count,)](
        logits, hidden, rows.warmth, rows.chances, at, tops, sums, places,
        ends, rows.limits, rows.tokens, rows.logps, rows.lengths, rows.done, rows.newest, rows.positions,
        logits.stride(0), vocabulary, parts, length, len(ends), draws, PART, triton.next_power_of_2(parts), num_warps=8,
    )  # fmt: skip
