"""Attention of suffixes to their shared prompt and to themselves, where no flash attention is: one step of autograd.

Suffixes become a table, padded on the right, each with its prompt's keys and values before its own. A token stands in
the table once, and what is padded has no gradient, so gradients come back by a gather: left to autograd, they would be
added up token by token, in a tensor of zeros for every part that was taken.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lewis_core.models.layout import Run


class SuffixAttention(torch.autograd.Function):
    """``SuffixAttention.apply(query, before_key, before_value, key, value, run, scale)``: (spans, tokens, heads, dim).

    ``query`` (spans, tokens, heads, head dim), ``key`` and ``value`` (spans, tokens, key-value heads, head dim) are
    those of all suffixes, without padding; ``before_key`` and ``before_value`` are those of the prompts, which may be
    empty. ``run`` is the :class:`~lewis_core.models.layout.Run`, ``scale`` the factor of the products.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        before_key: Tensor,
        before_value: Tensor,
        key: Tensor,
        value: Tensor,
        run: Run,
        scale: float,
    ) -> Tensor:
        """One softmax over the prompt and the suffix itself."""
        q = _queries(query, run, key.shape[2]).mul_(scale)
        k, v = _keys(before_key, key, run), _keys(before_value, value, run)
        scores, width = q @ k.transpose(3, 4), len(run.hidden)
        _by_head(scores, width)[..., run.before :].masked_fill_(run.hidden, -torch.inf)
        weights = scores.softmax(-1, dtype=torch.promote_types(query.dtype, torch.float32))
        ctx.save_for_backward(q, k, v, weights)
        ctx.run, ctx.scale = run, scale
        return _of_queries(weights.to(query.dtype) @ v, run)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        """Gradients of queries, keys and values."""
        (q, k, v, weights), run = ctx.saved_tensors, ctx.run
        of_out = _queries(gradients[0], run, k.shape[2])
        _by_head(of_out, len(run.hidden)).masked_fill_(~run.used[:, None, None, :, None], 0)  # not read
        of_weights = (of_out @ v.transpose(3, 4)).to(weights.dtype)
        of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype).to(q.dtype)
        of_query = _of_queries((of_scores @ k).mul_(ctx.scale), run)
        of_key = _of_keys(of_scores.transpose(3, 4) @ q, run)
        of_value = _of_keys(weights.to(q.dtype).transpose(3, 4) @ of_out, run)
        return of_query, of_key[0], of_value[0], of_key[1], of_value[1], None, None


def _queries(x: Tensor, run: Run, groups: int) -> Tensor:
    """(spans, tokens, heads, dim) to (spans, suffixes, groups, heads of a group x width, dim)."""
    rows = x.flatten(2).index_select(1, run.index.flatten())
    table = rows.view(len(x), *run.index.shape, groups, -1, x.shape[-1]).permute(0, 1, 3, 4, 2, 5)
    return table.reshape(*table.shape[:3], -1, x.shape[-1])


def _of_queries(table: Tensor, run: Run) -> Tensor:
    """Back again, without padding."""
    rows = _by_head(table, len(run.hidden)).permute(0, 1, 4, 2, 3, 5).flatten(1, 2)  # (.., tokens, groups, heads, dim)
    return rows.flatten(2).index_select(1, run.places).view(len(table), len(run.places), -1, table.shape[-1])


def _by_head(table: Tensor, width: int) -> Tensor:
    """(…, heads of a group x width, n) to (…, heads of a group, width, n), without a copy."""
    return table.view(*table.shape[:3], -1, width, table.shape[-1])


def _keys(before: Tensor, x: Tensor, run: Run) -> Tensor:
    """(spans, tokens, heads, dim) to (spans, suffixes, heads, before + width, dim)."""
    rows = x.flatten(2).index_select(1, run.index.flatten()).view(len(x), *run.index.shape, *x.shape[2:])
    suffixes, width = run.index.shape
    table = x.new_empty((len(x), suffixes, x.shape[2], run.before + width, x.shape[3]))
    table[:, :, :, : run.before] = before.transpose(1, 2)[:, None]
    table[:, :, :, run.before :] = rows.transpose(2, 3)
    return table


def _of_keys(table: Tensor, run: Run) -> tuple[Tensor, Tensor]:
    """Gradients of what a table of keys was made of: of the prompts' and of the suffixes' own."""
    before, own = torch.split(table, [run.before, len(run.hidden)], 3)
    rows = own.transpose(2, 3).flatten(1, 2).flatten(2).index_select(1, run.places)
    return before.sum(1).transpose(1, 2), rows.view(len(own), len(run.places), own.shape[2], own.shape[4])
