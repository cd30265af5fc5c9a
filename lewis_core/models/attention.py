"""Attention over a packed row: every suffix sees its prompt and itself, and nothing else.

Registered with transformers as ``shared_prefix``. The layout of the row travels as an argument of the model's forward;
without one the attention is transformers' ``sdpa``, so a model may keep it for ordinary calls.

On a GPU in half precision it is one variable-length flash attention a layer, for any number of prompts and suffixes.
Elsewhere a prompt's keys are multiplied once with the queries of all its suffixes.
"""

import inspect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from lewis_core.models.features import backbone

ATTENTION = "shared_prefix"


@dataclass(frozen=True)
class Span:
    """Where a prompt and its suffixes lie in the row, in this order, without gaps."""

    start: int
    prompt: int
    """Tokens of the prompt; may be 0."""
    suffixes: tuple[int, ...]
    """Tokens of each suffix, at least one."""

    @property
    def suffix_start(self) -> int:
        """Where the first suffix begins."""
        return self.start + self.prompt

    @property
    def end(self) -> int:
        """Where the next span begins."""
        return self.suffix_start + sum(self.suffixes)


class Layout:
    """Where everything lies in a packed row.

    Args:
        spans: Prompts with their suffixes, in order.
        device: Where index tensors are needed.
    """

    def __init__(self, spans: Sequence[Span], device: torch.device) -> None:
        self.spans, self._device = tuple(spans), device

    @cached_property
    def varlen(self) -> "Varlen":
        """The layout as variable-length attention wants it: each prompt and each suffix is a sequence of queries."""
        queries, keys, places = [], [], []
        for span in self.spans:
            prompt = range(span.start, span.suffix_start)
            if span.prompt:
                queries.append(span.prompt)
                keys.append(span.prompt)
                places.append(torch.arange(prompt.start, prompt.stop))
            starts = itertools.accumulate(span.suffixes, initial=span.suffix_start)
            for start, length in zip(starts, span.suffixes, strict=False):
                queries.append(length)
                keys.append(span.prompt + length)
                places += [torch.arange(prompt.start, prompt.stop), torch.arange(start, start + length)]
        return Varlen(
            self._offsets(queries),
            self._offsets(keys),
            max(queries),
            max(keys),
            torch.cat(places).to(self._device, non_blocking=True),
        )

    @cached_property
    def tables(self) -> "list[Table]":
        """Each span's suffixes as a padded table."""
        tables = []
        for span in self.spans:
            lengths = torch.tensor(span.suffixes)
            steps = torch.arange(int(lengths.max()))
            starts = lengths.cumsum(0) - lengths
            index = torch.minimum(starts[:, None] + steps, (starts + lengths - 1)[:, None])
            used = steps < lengths[:, None]
            hidden = steps[:, None] < steps  # (width, width)
            tables.append(Table(index.to(self._device), used.to(self._device), hidden.to(self._device)))
        return tables

    def _offsets(self, lengths: Sequence[int]) -> Tensor:
        offsets = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
        return offsets.to(self._device, non_blocking=True)


@dataclass(frozen=True)
class Varlen:
    """Arguments of variable-length attention, in which a key may serve several sequences."""

    cu_queries: Tensor
    """(sequences + 1,): where each sequence's queries begin."""
    cu_keys: Tensor
    """(sequences + 1,): where its keys begin, among the gathered ones."""
    max_queries: int
    max_keys: int
    gather: Tensor
    """(gathered keys,): place of each in the row."""


@dataclass(frozen=True)
class Table:
    """The suffixes of one prompt, padded on the right to the longest."""

    index: Tensor
    """(suffixes, width): place of each token behind the prompt; padding repeats a suffix's last token."""
    used: Tensor
    """(suffixes, width): whether it is a token."""
    hidden: Tensor
    """(width, width): keys that come later."""


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    shared_prefix: Layout | None = None,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """Attention in the form that transformers calls.

    Args:
        module: The attention layer.
        query: (1, heads, tokens, head dim).
        key: (1, key-value heads, tokens, head dim).
        value: As ``key``.
        attention_mask: Of ordinary calls.
        scaling: Factor of the products; ``None``: head dim to the power of -1/2.
        dropout: Of ordinary calls.
        shared_prefix: Layout of a packed row; ``None`` in ordinary calls.
        arguments: Of ordinary calls.

    Returns:
        (1, tokens, heads, head dim), and no weights.
    """
    if shared_prefix is None:
        sdpa = AttentionInterface()["sdpa"]
        return sdpa(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **arguments)
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    parts = [x[0].transpose(0, 1) for x in (query, key, value)]  # (tokens, heads, head dim)
    is_flash = query.is_cuda and query.dtype in (torch.bfloat16, torch.float16)
    attend = _attend_varlen if is_flash else _attend_by_span
    return attend(*parts, shared_prefix, factor)[None], None


def _attend_varlen(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    varlen, known = layout.varlen, inspect.signature(varlen_attn).parameters  # they changed from torch 2.10 to 2.14
    chosen: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    if "enable_gqa" in known:
        chosen["enable_gqa"] = query.shape[1] != key.shape[1]
    if "scale" in known:
        chosen["scale"] = scale
    else:
        query = query * (scale * query.shape[-1] ** 0.5)
    out: Tensor = varlen_attn(
        query.contiguous(),
        key[varlen.gather],
        value[varlen.gather],
        varlen.cu_queries,
        varlen.cu_keys,
        varlen.max_queries,
        varlen.max_keys,
        **chosen,
    )
    return out


def _attend_by_span(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
    out = []
    for span, table in zip(layout.spans, layout.tables, strict=True):
        prompt, rest = slice(span.start, span.suffix_start), slice(span.suffix_start, span.end)
        if span.prompt:
            out.append(_attend_causally(query[prompt], key[prompt], value[prompt], scale))
        before = key[prompt].transpose(0, 1), value[prompt].transpose(0, 1)
        out.append(_attend_in_table(query[rest] * scale, key[rest], value[rest], before, table))
    return torch.cat(out)


def _attend_causally(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    repeats = query.shape[1] // key.shape[1]
    q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
    if repeats > 1:
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)[0].transpose(0, 1)


def _attend_in_table(query: Tensor, key: Tensor, value: Tensor, before: tuple[Tensor, Tensor], table: Table) -> Tensor:
    """One softmax over the prompt and the suffix itself.

    Args:
        query: (suffix tokens, heads, head dim), scaled.
        key: (suffix tokens, key-value heads, head dim).
        value: As ``key``.
        before: The prompt's keys and values: (key-value heads, prompt tokens, head dim).
        table: The suffixes.

    Returns:
        As ``query``.
    """
    heads = key.shape[1]
    q = query[table.index].unflatten(2, (heads, -1)).permute(2, 0, 3, 1, 4)  # (kv heads, suffixes, repeats, width, dim)
    k, v = (x[table.index].permute(2, 0, 1, 3) for x in (key, value))  # (kv heads, suffixes, width, dim)
    of_prompt = (q.flatten(1, 3) @ before[0].transpose(1, 2)).unflatten(1, q.shape[1:4])
    of_suffix = (q.flatten(2, 3) @ k.transpose(2, 3)).unflatten(2, q.shape[2:4])
    of_suffix = of_suffix.masked_fill(table.hidden, -torch.inf)
    precision = torch.promote_types(query.dtype, torch.float32)
    weights = torch.cat([of_prompt, of_suffix], -1).softmax(-1, dtype=precision).to(query.dtype)
    for_prompt, for_suffix = weights.split([of_prompt.shape[-1], of_suffix.shape[-1]], -1)
    out = (for_prompt.flatten(1, 3) @ before[1]).view_as(q) + (for_suffix.flatten(2, 3) @ v).view_as(q)
    return out.permute(1, 3, 0, 2, 4).flatten(2, 3)[table.used]


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def use_shared_prefix(model: Any) -> None:
    """Let the language model (not the vision tower) attend so.

    Args:
        model: A Qwen-VL model of transformers, or its PEFT wrapper.
    """
    backbone(model).language_model.set_attn_implementation(ATTENTION)
