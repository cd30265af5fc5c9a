"""Attention of suffixes: against a dense mask, and its gradients against slopes."""

import itertools
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from lewis_core.models.attention import attention
from lewis_core.models.layout import Layout, Run, Span
from lewis_core.models.suffix_attention import SuffixAttention

SIZES = [(1, 0, (2,)), (1, 3, (2,)), (2, 3, (1, 4, 2)), (1, 2, (3, 3)), (2, 1, (1,))]
"""Spans, tokens before them, tokens of each suffix."""


def inputs(spans: int, before: int, suffixes: Sequence[int], heads: int = 4) -> tuple[list[Tensor], Run]:
    """Queries, keys and values before, keys, values."""
    torch.manual_seed(0)
    starts = [number * (before + sum(suffixes)) for number in range(spans)]
    [run] = Layout([Span(start, before, tuple(suffixes)) for start in starts], torch.device("cpu")).runs
    own, kept = (spans, sum(suffixes)), (spans, before)
    shapes = ((*own, heads, 4), (*kept, 2, 4), (*kept, 2, 4), (*own, 2, 4), (*own, 2, 4))
    return [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes], run


def densely(parts: Sequence[Tensor], before: int, suffixes: Sequence[int]) -> Tensor:
    """Over all keys at once, with a mask."""
    query, before_key, before_value, key, value = parts
    k, v = torch.cat([before_key, key], 1), torch.cat([before_value, value], 1)
    mask = torch.zeros(sum(suffixes), before + sum(suffixes), dtype=torch.bool)
    mask[:, :before] = True
    for start, end in itertools.pairwise(itertools.accumulate(suffixes, initial=0)):
        mask[start:end, before + start : before + end] = torch.ones(end - start, end - start).tril().bool()
    q, k, v = (x.transpose(1, 2) for x in (query, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=0.3, enable_gqa=True)
    return out.transpose(1, 2)


@pytest.mark.parametrize(("spans", "before", "suffixes"), SIZES)
@pytest.mark.parametrize("heads", [2, 4])
def test_it_is_attention_with_a_dense_mask(spans: int, before: int, suffixes: tuple[int, ...], heads: int) -> None:
    parts, run = inputs(spans, before, suffixes, heads)
    torch.testing.assert_close(SuffixAttention.apply(*parts, run, 0.3), densely(parts, before, suffixes))


@pytest.mark.parametrize(("spans", "before", "suffixes"), SIZES)
def test_its_gradient_is_the_slope(spans: int, before: int, suffixes: tuple[int, ...]) -> None:
    parts, run = inputs(spans, before, suffixes)
    assert torch.autograd.gradcheck(lambda *x: SuffixAttention.apply(*x, run, 0.3), parts)


def test_half_precision_sums_up_in_full() -> None:
    parts, run = inputs(2, 3, (1, 4, 2))
    half = [part.detach().bfloat16().requires_grad_() for part in parts]
    out = SuffixAttention.apply(*half, run, 0.3)
    expected = densely(parts, 3, (1, 4, 2))
    torch.testing.assert_close(out.double(), expected, atol=0.03, rtol=0.03)
    gradients = torch.autograd.grad(out.float().square().sum(), half)
    wanted = torch.autograd.grad(expected.square().sum(), parts)
    for found, exact in zip(gradients, wanted, strict=True):
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), exact, atol=0.05, rtol=0.05)


def test_under_autocast_it_is_computed_in_the_values_precision() -> None:
    """A rotation leaves queries and keys in float32 there."""
    torch.manual_seed(0)
    layout = Layout([Span(0, 3, (2, 4))], torch.device("cpu"))
    query, key = (torch.randn(1, heads, 9, 4, requires_grad=True) for heads in (4, 2))
    value = torch.randn(1, 2, 9, 4, dtype=torch.bfloat16, requires_grad=True)
    module = SimpleNamespace(layer_idx=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = attention(module, query, key, value, None, shared_prefix=layout)
    assert out.dtype == torch.bfloat16
    gradients = torch.autograd.grad(out.float().sum(), (query, key, value))
    exact, _ = attention(module, *(x.detach().float() for x in (query, key, value)), None, shared_prefix=layout)
    torch.testing.assert_close(out.float(), exact, atol=0.03, rtol=0.03)
    assert [gradient.dtype for gradient in gradients] == [torch.float32, torch.float32, torch.bfloat16]
