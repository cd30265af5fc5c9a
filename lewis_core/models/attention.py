"""Attention over a packed row: every suffix sees its prompt and itself, and nothing else.

Registered with transformers as ``shared_prefix``. The layout of the row travels as an argument of the model's forward;
without one the attention is transformers' ``sdpa``, so a model may keep it for ordinary calls.

A prompt may begin before the row: keys and values of its first tokens, kept from an earlier row, come from elsewhere.

On a GPU in half precision it is one variable-length flash attention a layer, for any number of prompts and suffixes.
Elsewhere the suffixes of a prompt are a table (:mod:`lewis_core.models.suffix_attention`).
"""

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lewis_core.models.features import backbone
from lewis_core.models.layout import Layout, Run
from lewis_core.models.suffix_attention import SuffixAttention

ATTENTION = "shared_prefix"
IMAGE_ATTENTION = "packed_images_flash"
"""Transformers' vision towers tell an attention where images begin only if its name has "flash" in it; all others are
called once for every image."""


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
    query, key, value = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))  # (tokens, heads, head dim)
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
    sizes = [run.spans * run.tokens for run in layout.runs] + [run.spans * run.kept for run in layout.runs]
    in_row = len(layout.runs)
    queries, keys, values = (
        torch.split(x, part) for x, part in ((query, sizes[:in_row]), (key, sizes), (value, sizes))
    )
    out = []
    for number, run in enumerate(layout.runs):
        q, k, v = (_by_span(x[number], run) for x in (queries, keys, values))
        kept = [_by_span(x[in_row + number], run) for x in (keys, values)] if run.kept else []
        out.append(_attend_in_run(q, k, v, kept, run, scale).flatten(0, 1))
    return torch.cat(out)


def _by_span(x: Tensor, run: Run) -> Tensor:
    return x.view(run.spans, -1, *x.shape[1:])


def _attend_in_run(query: Tensor, key: Tensor, value: Tensor, kept: Sequence[Tensor], run: Run, scale: float) -> Tensor:
    """Attention of some spans of the same shape.

    Args:
        query: (spans, tokens, heads, head dim).
        key: (spans, tokens, key-value heads, head dim).
        value: As ``key``.
        kept: Keys and values of what comes before the spans, as ``key``; empty if nothing does.
        run: The spans.
        scale: Factor of the products.

    Returns:
        As ``query``.
    """
    parts = [run.prompt, query.shape[1] - run.prompt]
    (of_prompt, q), (before_key, k), (before_value, v) = (torch.split(x, parts, 1) for x in (query, key, value))
    if kept:
        before_key, before_value = (torch.cat(x, 1) for x in zip(kept, (before_key, before_value), strict=True))
    out: Tensor = SuffixAttention.apply(q, before_key, before_value, k, v, run, scale)
    if not run.prompt:
        return out
    repeats = query.shape[2] // key.shape[2]
    of_prompt, pk, pv = (x.transpose(1, 2) for x in (of_prompt, before_key, before_value))
    if repeats > 1:
        pk, pv = pk.repeat_interleave(repeats, 1), pv.repeat_interleave(repeats, 1)
    mask: dict[str, Any] = {"attn_mask": run.visible} if run.kept else {"is_causal": True}
    of_prompt = F.scaled_dot_product_attention(of_prompt, pk, pv, scale=scale, **mask)
    return torch.cat([of_prompt.transpose(1, 2), out], 1)


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
