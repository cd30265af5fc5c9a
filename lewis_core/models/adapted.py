"""Frozen linear layers with adapters (LoRA) as one step of autograd: few products, few passes over memory in between.

An adapter costs two small products and nothing else: peft also copies its input to float32, casts it back, scales and
adds. Layers that read the same input share the product of their adapters' first halves, forward and backward, and
gather the gradient of their input in one tensor; layers that autograd knows one by one leave it a sum of such tensors.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lewis_core.models.wide_products import add_product_, linear


class Layer(NamedTuple):
    """A frozen layer and its adapter, which is cast to the precision of what it reads."""

    weight: Tensor
    """(out, in)"""
    bias: Tensor | None
    """(out,)"""
    a: Tensor
    """(rank, in)"""
    b: Tensor
    """(out, rank)"""

    @classmethod
    def split(cls, tensors: Sequence[Any]) -> "list[Layer]":
        """Layers from their tensors one after another, which is how autograd wants them."""
        size = len(cls._fields)
        return [cls(*tensors[at : at + size]) for at in range(0, len(tensors), size)]


class Adapted(torch.autograd.Function):
    """``Adapted.apply(x, scale, *tensors)``: x W' + bias + scale (x A') B' of each layer; x (…, in).

    The tensors are those of a :class:`Layer`, for one layer after another.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        """A product for each layer, one for all first halves, one for each second half."""
        rows, layers = x.reshape(-1, x.shape[-1]), Layer.split(tensors)
        inner = _first_halves(rows, layers, scale)
        ctx.save_for_backward(x, inner, *tensors)
        ctx.scale = scale
        return tuple(
            _out(rows, layer, part).view(*x.shape[:-1], -1)
            for layer, part in zip(layers, _parts(inner, layers), strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        """Gradients of the input and of the adapters."""
        x, inner, *tensors = ctx.saved_tensors
        layers, rows = Layer.split(tensors), x.reshape(-1, x.shape[-1])
        grads = [gradient.reshape(-1, gradient.shape[-1]) for gradient in gradients]
        of_inner = _of_inner(grads, layers, ctx.scale)
        of_x = _of_input(grads, of_inner, layers).view_as(x) if ctx.needs_input_grad[0] else None
        return of_x, None, *_of_adapters(rows, inner, grads, of_inner, layers)


class AdaptedMlp(torch.autograd.Function):
    """``AdaptedMlp.apply(x, scale, *tensors)``: down(silu(gate(x)) * up(x)); x (…, in), in half precision on a GPU.

    The tensors are those of the :class:`Layer` s gate, up and down, whose adapters have the same rank, one that
    kernels can take (:data:`lewis_core.models.stacking.RANKS`). Outputs of gate and up are kept without their
    adapters' second halves, which the kernels of the activation and of its gradient add where they read them: neither
    reads or writes more than if they were in. The latter also adds what comes back through the adapter of down.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, *tensors: Tensor | None) -> Tensor:
        """Three large products, one kernel, two small products for each two adapters."""
        from lewis_core.models.adapter_kernels import activate

        rows, (gate, up, down) = x.reshape(-1, x.shape[-1]), Layer.split(tensors)
        inner = _first_halves(rows, (gate, up), scale)
        of_gate, of_up = (F.linear(rows, layer.weight, layer.bias) for layer in (gate, up))
        gated = activate(of_gate, of_up, inner, (gate.b.to(x.dtype), up.b.to(x.dtype)))
        of_gated = _first_halves(gated, (down,), scale)
        ctx.save_for_backward(x, inner, of_gate, of_up, gated, of_gated, *tensors)
        ctx.scale = scale
        return _out(gated, down, of_gated).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        """Gradients of the input and of the adapters."""
        from lewis_core.models.adapter_kernels import activate_back

        x, inner, of_gate, of_up, gated, of_gated, *tensors = ctx.saved_tensors
        (gate, up, down), scale = Layer.split(tensors), ctx.scale
        rows, grads = x.reshape(-1, x.shape[-1]), [gradients[0].reshape(-1, gradients[0].shape[-1])]
        of_inner = _of_inner(grads, (down,), scale)
        of_down = _of_adapters(gated, of_gated, grads, of_inner, (down,))
        after, following = (gate.b.to(x.dtype), up.b.to(x.dtype)), (of_inner, down.a.to(x.dtype))
        grads = [*activate_back(grads[0] @ down.weight, following, of_gate, of_up, inner, after)]
        of_inner = _of_inner(grads, (gate, up), scale)
        of_x = _of_input(grads, of_inner, (gate, up)).view_as(x) if ctx.needs_input_grad[0] else None
        return of_x, None, *_of_adapters(rows, inner, grads, of_inner, (gate, up)), *of_down


def _first_halves(rows: Tensor, layers: Sequence[Layer], scale: float) -> Tensor:
    """What the adapters' first halves make of the layers' input, scaled: (tokens, ranks)."""
    a = _first(layers, rows.dtype)
    return rows.new_empty((len(rows), len(a))).addmm_(rows, a.t(), beta=0, alpha=scale)


def _first(layers: Sequence[Layer], dtype: torch.dtype) -> Tensor:
    """The adapters' first halves: (ranks, in)."""
    return torch.cat([layer.a for layer in layers]).to(dtype) if len(layers) > 1 else layers[0].a.to(dtype)


def _parts(inner: Tensor, layers: Sequence[Layer]) -> Sequence[Tensor]:
    """Each layer's part of what first halves have made: (tokens, rank)."""
    return torch.split(inner, [len(layer.a) for layer in layers], 1)


def _out(rows: Tensor, layer: Layer, inner: Tensor) -> Tensor:
    """A layer's output, its adapter's second half added: (tokens, out)."""
    return linear(rows, layer.weight, layer.bias).addmm_(inner, layer.b.to(rows.dtype).t())


def _of_inner(grads: Sequence[Tensor], layers: Sequence[Layer], scale: float) -> Tensor:
    """Gradient of what the first halves have made before it was scaled: (tokens, ranks)."""
    found = grads[0].new_empty((len(grads[0]), sum(len(layer.a) for layer in layers)))
    for grad, layer, part in zip(grads, layers, _parts(found, layers), strict=True):
        part.addmm_(grad, layer.b.to(grad.dtype), beta=0, alpha=scale)
    return found


def _of_input(grads: Sequence[Tensor], of_inner: Tensor, layers: Sequence[Layer]) -> Tensor:
    """Gradient of the layers' input: (tokens, in)."""
    found = linear(grads[0], layers[0].weight.t())
    for grad, layer in zip(grads[1:], layers[1:], strict=True):
        add_product_(found, grad, layer.weight.t())
    return found.addmm_(of_inner, _first(layers, of_inner.dtype))


def _of_adapters(
    rows: Tensor, inner: Tensor, grads: Sequence[Tensor], of_inner: Tensor, layers: Sequence[Layer]
) -> list[Tensor | None]:
    """Gradients of the layers' tensors, one after another."""
    of_a = (of_inner.t() @ rows).to(layers[0].a.dtype)
    found: list[Tensor | None] = []
    parts = zip(
        grads, _parts(inner, layers), layers, torch.split(of_a, [len(layer.a) for layer in layers]), strict=True
    )
    for grad, part, layer, own in parts:
        found += [None, None, own, (grad.t() @ part).to(layer.b.dtype)]
    return found
