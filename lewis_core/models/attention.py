"""Attention over a packed row: every suffix sees its prompt and itself, and nothing else.

Registered with transformers as ``shared_prefix``. The layout of the row travels as an argument of the model's forward;
without one the attention is transformers' ``sdpa``, so a model may keep it for ordinary calls.

A prompt may begin before the row: keys and values of its first tokens, kept from an earlier row, come from elsewhere.

On a GPU in half precision it is one variable-length flash attention a layer, for any number of prompts and suffixes.
Elsewhere a prompt's keys are multiplied once with the queries of all its suffixes.
"""

import functools
import inspect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lewis_core.models.features import backbone, send

ATTENTION = "shared_prefix"
IMAGE_ATTENTION = "packed_images_flash"
"""Transformers' vision towers tell an attention where images begin only if its name has "flash" in it; all others are
called once for every image."""


@dataclass(frozen=True)
class Span:
    """Where a prompt and its suffixes lie in the row, in this order, without gaps."""

    start: int
    prompt: int
    """Tokens of the prompt; may be 0."""
    suffixes: tuple[int, ...]
    """Tokens of each suffix, at least one."""
    kept: int = 0
    """Tokens that the prompt has before those in the row; their keys and values are kept."""

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
        kept: Keys and values that come before the spans which have some, in their order, each (layers, 2, tokens,
            key-value heads, head dim).
    """

    def __init__(self, spans: Sequence[Span], device: torch.device, kept: Sequence[Tensor] = ()) -> None:
        self.spans, self._kept, self._device = tuple(spans), tuple(kept), device
        self.record: Callable[[int, Tensor, Tensor], None] | None = None
        """Called with every layer's number, keys and values of the row (tokens, key-value heads, head dim)."""
        if device.type == "cuda":
            _ = self.varlen  # made while the GPU is busy with what came before

    @cached_property
    def varlen(self) -> "Varlen":
        """The layout as variable-length attention wants it: each prompt and each suffix is a sequence of queries."""
        queries, keys, places = [], [], []
        at = self.spans[-1].end
        for span in self.spans:
            prompt = np.concatenate([np.arange(at, at + span.kept), np.arange(span.start, span.suffix_start)])
            at += span.kept
            if span.prompt:
                queries.append(span.prompt)
                keys.append(len(prompt))
                places.append(prompt)
            starts = itertools.accumulate(span.suffixes, initial=span.suffix_start)
            for start, length in zip(starts, span.suffixes, strict=False):
                queries.append(length)
                keys.append(len(prompt) + length)
                places += [prompt, np.arange(start, start + length)]
        return Varlen(
            self._offsets(queries),
            self._offsets(keys),
            max(queries),
            max(keys),
            send(torch.from_numpy(np.concatenate(places)), self._device),
        )

    @cached_property
    def runs(self) -> "list[Run]":
        """Neighbours of the same shape, which are computed together."""
        runs = []
        for (kept, prompt, suffixes), spans in itertools.groupby(
            self.spans, lambda span: (span.kept, span.prompt, span.suffixes)
        ):
            lengths = torch.tensor(suffixes)
            steps = torch.arange(int(lengths.max()))
            starts = lengths.cumsum(0) - lengths
            index = torch.minimum(starts[:, None] + steps, (starts + lengths - 1)[:, None])
            used = steps < lengths[:, None]
            hidden = steps[:, None] < steps
            tables = (x.to(self._device) for x in (index, used, hidden))
            runs.append(Run(len(list(spans)), kept, prompt, *tables))
        return runs

    def keys(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer: those of the row, and behind them those that are kept.

        Args:
            layer: Its number.
            key: (tokens, key-value heads, head dim).
            value: As ``key``.
        """
        if self.record is not None:
            self.record(layer, key, value)
        if not self._kept:
            return key, value
        keys, values = (torch.cat([x, *(one[layer, part] for one in self._kept)]) for part, x in ((0, key), (1, value)))
        return keys, values

    def _offsets(self, lengths: Sequence[int]) -> Tensor:
        return send(torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32), self._device)


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
    """(gathered keys,): place of each in the row, or behind it among those that are kept."""


@dataclass(frozen=True)
class Run:
    """Spans of the same shape, one after the other; suffixes as a table, padded on the right to the longest."""

    spans: int
    kept: int
    """Tokens of each prompt before the row."""
    prompt: int
    """Tokens of each prompt in the row."""
    index: Tensor
    """(suffixes, width): place of each token behind the prompt; padding repeats a suffix's last token."""
    used: Tensor
    """(suffixes, width): whether it is a token."""
    hidden: Tensor
    """(width, width): keys that come later."""

    @property
    def before(self) -> int:
        """Tokens that every suffix sees: the whole prompt."""
        return self.kept + self.prompt

    @cached_property
    def visible(self) -> Tensor:
        """(prompt, kept + prompt): keys of a prompt that do not come later."""
        return torch.ones(self.prompt, self.before, dtype=torch.bool, device=self.index.device).tril(self.kept)

    @property
    def tokens(self) -> int:
        """Tokens of each span in the row."""
        return self.prompt + int(self.index[-1, -1]) + 1


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
        ordinary: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **arguments
        )
        return ordinary
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # (tokens, heads, head dim)
    key, value = shared_prefix.keys(module.layer_idx, key, value)
    is_flash = query.is_cuda and query.dtype in (torch.bfloat16, torch.float16)
    attend = _attend_varlen if is_flash else _attend_by_span
    return attend(query, key, value, shared_prefix, factor)[None], None


def _attend_varlen(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
    varlen = layout.varlen
    key, value = key[varlen.gather], value[varlen.gather]
    bounds = (varlen.cu_queries, varlen.cu_keys, varlen.max_queries, varlen.max_keys)
    return _flash(query, key, value, bounds, scale, is_causal=True)


def _flash(
    query: Tensor, key: Tensor, value: Tensor, bounds: tuple[Tensor, Tensor, int, int], scale: float, *, is_causal: bool
) -> Tensor:
    """Torch's variable-length attention: (tokens, heads, head dim); ``bounds`` as its arguments three to six."""
    from torch.nn.attention.varlen import varlen_attn

    known = _parameters(varlen_attn)
    chosen: dict[str, Any] = {}
    if is_causal:
        chosen = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    if "enable_gqa" in known:
        chosen["enable_gqa"] = query.shape[1] != key.shape[1]
    if "scale" in known:
        chosen["scale"] = scale
    else:
        query = query * (scale * query.shape[-1] ** 0.5)
    out: Any = varlen_attn(query.contiguous(), key.contiguous(), value.contiguous(), *bounds, **chosen)
    attended: Tensor = out
    return attended


@functools.cache
def _parameters(function: Any) -> frozenset[str]:
    """Names of the arguments; those of ``varlen_attn`` changed from torch 2.10 to 2.14."""
    return frozenset(inspect.signature(function).parameters)


def _attend_by_span(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
    out, start, kept = [], 0, len(query)
    for run in layout.runs:
        q, k, v = (_of_run(x, start, run.spans, run.tokens) for x in (query * scale, key, value))
        if run.kept:
            k, v = (torch.cat([_of_run(x, kept, run.spans, run.kept), y], 2) for x, y in ((key, k), (value, v)))
        out.append(_attend_in_run(q, k, v, run).transpose(1, 2).flatten(0, 1))
        start, kept = start + run.spans * run.tokens, kept + run.spans * run.kept
    return torch.cat(out)


def _of_run(x: Tensor, start: int, spans: int, tokens: int) -> Tensor:
    """Tokens of neighbours, from ``start`` on: (spans, heads, tokens, head dim)."""
    return x[start : start + spans * tokens].view(spans, tokens, *x.shape[1:]).transpose(1, 2)


def _attend_in_run(query: Tensor, key: Tensor, value: Tensor, run: Run) -> Tensor:
    """Attention of some spans of the same shape.

    Args:
        query: (spans, heads, tokens, head dim), scaled.
        key: (spans, key-value heads, kept + tokens, head dim).
        value: As ``key``.
        run: The spans.

    Returns:
        As ``query``.
    """
    of_prompt = query[:, :, : run.prompt]
    if run.prompt:
        repeats = query.shape[1] // key.shape[1]
        k, v = (x[:, :, : run.before] for x in (key, value))
        if repeats > 1:
            k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        mask: dict[str, Any] = {"attn_mask": run.visible} if run.kept else {"is_causal": True}
        of_prompt = F.scaled_dot_product_attention(of_prompt, k, v, scale=1.0, **mask)
    return torch.cat([of_prompt, _attend_in_table(query, key, value, run)], 2)


def _attend_in_table(query: Tensor, key: Tensor, value: Tensor, run: Run) -> Tensor:
    """Attention of suffixes: one softmax over the prompt and the suffix itself. Shapes as in :func:`_attend_in_run`."""
    spans, heads, _, dim = key.shape
    suffixes, width = run.index.shape
    k, v = (x[:, :, run.before :][:, :, run.index] for x in (key, value))  # (spans, heads, suffixes, width, dim)
    q = query[:, :, run.prompt :][:, :, run.index].view(spans, heads, -1, suffixes, width, dim).transpose(2, 3)
    size = q.shape  # (spans, key-value heads, suffixes, repeats, width, dim)
    of_prompt = q.flatten(2, 4) @ key[:, :, : run.before].transpose(2, 3)
    of_suffix = (q.flatten(3, 4) @ k.transpose(3, 4)).view(*size[:-1], width).masked_fill(run.hidden, -torch.inf)
    scores = torch.cat([of_prompt.view(*size[:-1], run.before), of_suffix], -1)
    weights = scores.softmax(-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype)
    for_prompt, for_suffix = weights[..., : run.before], weights[..., run.before :]
    out = (for_prompt.flatten(2, 4) @ value[:, :, : run.before]).view(size)
    out = out + (for_suffix.flatten(3, 4) @ v).view(size)
    attended: Tensor = out.transpose(2, 3).flatten(1, 2)[:, :, run.used]
    return attended


def image_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """Attention of a vision tower, in the form that transformers calls: every image (or window) sees itself only.

    Args:
        module: The attention layer.
        query: (1, heads, patches of all images, head dim).
        key: As ``query``.
        value: As ``query``.
        attention_mask: None; images are told apart by their bounds.
        scaling: Factor of the products; ``None``: head dim to the power of -1/2.
        dropout: Not used: the tower is frozen.
        cu_seq_lens_q: (images + 1,): where each image's patches begin.
        max_length_q: Patches of the largest.
        arguments: Not used.

    Returns:
        (1, patches, heads, head dim), and no weights.
    """
    if cu_seq_lens_q is None or max_length_q is None:
        raise ValueError("the vision tower's layer did not say where its images begin")
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        starts = cu_seq_lens_q.to(torch.int32)
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        return _flash(q, k, v, (starts, starts, max_length_q, max_length_q), factor, is_causal=False)[None], None
    lengths = cu_seq_lens_q.diff().tolist()
    images = zip(*(torch.split(x, lengths, 2) for x in (query, key, value)), strict=True)
    out = torch.cat([F.scaled_dot_product_attention(q, k, v, scale=factor) for q, k, v in images], 2)
    return out.transpose(1, 2), None


AttentionInterface.register(IMAGE_ATTENTION, image_attention)
AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def use_shared_prefix(model: Any) -> None:
    """Let the language model (not the vision tower) attend so.

    Args:
        model: A Qwen-VL model of transformers, or its PEFT wrapper.
    """
    backbone(model).language_model.set_attn_implementation(ATTENTION)


def use_packed_images(model: Any) -> None:
    """Let the vision tower attend to all images of a batch in one call a layer.

    Args:
        model: A Qwen-VL model of transformers, or its PEFT wrapper.
    """
    backbone(model).visual.config._attn_implementation = IMAGE_ATTENTION  # its setter looks for the package flash-attn
