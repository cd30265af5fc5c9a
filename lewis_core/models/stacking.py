"""Linear layers that read the same input as one matrix product, their adapters included: for decoding.

A step of decoding reads every weight for few rows, so what counts is how many products there are, not how large they
are. Queries, keys and values are one product, and so are an MLP's two inputs.

In half precision on a GPU (:class:`Stack`), the first half of the adapters (LoRA's A) rides along as further rows of
the same matrix, the second halves (B) are one small product more; added to a weight in bfloat16, most of a small
adapter would be lost. The weights are not copied: a stack's matrix is their new home, of which each layer's weight is a
part. In full precision on a CPU (:class:`MergedStack`), adapters are added to copies of the weights.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lewis_core.models.wide_products import linear

STACKED = (
    ("self_attn", ("q_proj", "k_proj", "v_proj")),
    ("self_attn", ("o_proj",)),
    ("mlp", ("gate_proj", "up_proj")),
    ("mlp", ("down_proj",)),
)
"""Modules of a language model's layer, and which of their layers read the same input."""
RANKS = {16, 32, 64, 128}
"""Ranks of adapters whose second halves kernels can take."""


class Stack:
    """Linear layers, or their LoRA wrappers, of the same input.

    Args:
        layers: At least one.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers = tuple(layers)
        bases = [_base(layer) for layer in layers]
        self.is_active = False
        """Whether it is used: while a model writes."""
        self.sizes = [base.out_features for base in bases]
        """Width of each layer's output."""
        self._width, self._places = sum(self.sizes), _places(layers)
        weight, inner = bases[0].weight.data, sum(size for _, _, size in self._places)
        with torch.inference_mode(False), torch.no_grad():  # weights must stay fit for training
            self._matrix = weight.new_zeros((self._width + inner, bases[0].in_features))
            self._bias = weight.new_zeros(len(self._matrix)) if any(base.bias is not None for base in bases) else None
            self.after = weight.new_zeros((self._width, inner))
            """(outputs, ranks): the adapters' second halves, scaled, each where its layer's outputs meet its rank."""
            self.owns_weights(move=True)
        ranks = [rank for *_, rank in self._places]
        halves = zip(self._matrix[self._width :].split(ranks), self.after.split(ranks, 1), strict=True) if ranks else ()
        self._halves = [
            (first, second.split(self.sizes)[number])
            for (number, *_), (first, second) in zip(self._places, halves, strict=True)
        ]

    def fits(self) -> bool:
        """Whether the layers' weights are parts of the matrix."""
        return self.owns_weights()

    def owns_weights(self, *, move: bool = False) -> bool:
        """Whether the layers' weights are parts of the matrix; they are not if somebody has replaced them since.

        Args:
            move: Let them be.
        """
        at = 0
        for base in map(_base, self.layers):
            part = self._matrix[at : at + base.out_features]
            if move:
                part.copy_(base.weight.data)
                base.weight.data = part
            elif base.weight.data_ptr() != part.data_ptr():
                return False
            at += base.out_features
        return True

    @torch.no_grad()
    def refresh(self) -> bool:
        """Take over biases and adapters as they are now; returns whether the stack can stand for the layers."""
        if not self.owns_weights() or _places(self.layers) != self._places:
            return False
        if self._bias is not None:
            for layer, part in zip(self.layers, self._bias[: self._width].split(self.sizes), strict=True):
                if (bias := _base(layer).bias) is not None:
                    part.copy_(bias)
        for (number, name, _), (first, second) in zip(self._places, self._halves, strict=True):
            layer = self.layers[number]
            first.copy_(layer.lora_A[name].weight)
            torch.mul(layer.lora_B[name].weight, layer.scaling[name], out=second)
        return True

    @property
    def rank(self) -> int | None:
        """Rank of the adapters, if each layer has one, all of the same rank that kernels can take."""
        ranks = {rank for _, _, rank in self._places}
        is_even = [number for number, _, _ in self._places] == list(range(len(self.layers))) and len(ranks) == 1
        return ranks.pop() if is_even and ranks <= RANKS else None

    def product(self, x: Tensor) -> Tensor:
        """Outputs of all layers without their adapters, then of the adapters' first halves: (rows, outputs + ranks)."""
        rows = x.reshape(-1, x.shape[-1])
        if (plan := self._plan(rows)) is not None and plan.parts == 1:
            from lewis_core.models.product_kernels import multiply

            return multiply(rows, self._matrix, self._bias, plan)[0]
        return F.linear(rows, self._matrix, self._bias)

    def _plan(self, rows: Tensor) -> Any:
        """How a kernel of ours would compute a product of a few rows; ``None`` if it is left to the library."""
        if not rows.is_cuda or rows.stride(1) != 1:
            return None
        from lewis_core.models.product_kernels import plan

        outputs, inputs = self._matrix.shape
        return plan(len(rows), outputs, inputs, rows.device)

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """Outputs of all layers, which are parts of one tensor: (…, in) → (…, out) each."""
        if len(self.layers) == 1 and self.rank and self._bias is None:
            rows = x.reshape(-1, x.shape[-1])
            if (plan := self._plan(rows)) is not None:
                from lewis_core.models.product_kernels import join, multiply

                return (join(multiply(rows, self._matrix, None, plan), self.after).view(*x.shape[:-1], -1),)
        rows = self.product(x)
        out, inner = rows[:, : self._width], rows[:, self._width :]
        if inner.shape[1]:
            out.addmm_(inner, self.after.t())
        return torch.split(out.view(*x.shape[:-1], -1), self.sizes, -1)


class MergedStack:
    """Linear layers of the same input, or their LoRA wrappers, in copies of their weights that have the adapters in.

    Args:
        layers: At least one, in float32 or float64.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers = tuple(layers)
        bases = [_base(layer) for layer in layers]
        self.is_active = False
        """Whether it is used: while a model writes."""
        self.sizes = [base.out_features for base in bases]
        """Width of each layer's output."""
        weight, width = bases[0].weight.data, sum(self.sizes)
        with torch.inference_mode(False), torch.no_grad():
            self._matrix = weight.new_empty((width, bases[0].in_features))
            self._bias = weight.new_zeros(width) if any(base.bias is not None for base in bases) else None

    def fits(self) -> bool:
        """Whether the layers are where they were."""
        first: Tensor = _base(self.layers[0]).weight
        return (first.device, first.dtype) == (self._matrix.device, self._matrix.dtype)

    @torch.no_grad()
    def refresh(self) -> bool:
        """Take over weights, biases and adapters as they are now; returns that the stack can stand for the layers."""
        for layer, part in zip(self.layers, self._matrix.split(self.sizes), strict=True):
            part.copy_(_base(layer).weight)
            for name in _adapters(layer):
                first, second = (table[name].weight.to(part.dtype) for table in (layer.lora_A, layer.lora_B))
                part.addmm_(second, first, alpha=layer.scaling[name])
        if self._bias is not None:
            for layer, part in zip(self.layers, self._bias.split(self.sizes), strict=True):
                if (bias := _base(layer).bias) is not None:
                    part.copy_(bias)
        return True

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """Outputs of all layers, without gradients, parts of one tensor: (…, in) → (…, out) each."""
        return torch.split(linear(x, self._matrix, self._bias), self.sizes, -1)


AnyStack = Stack | MergedStack


def stacks_of(model: Any, kind: type[AnyStack] = Stack) -> list[AnyStack]:
    """Find the stacks of a language model's layers; they are made at the first time, where they are worth it.

    Args:
        model: The language model.
        kind: Which ones: :class:`MergedStack` for float32 and float64 alone.
    """
    found: list[AnyStack] = []
    for layer in model.layers:
        for part, names in STACKED:
            module = getattr(layer, part)
            layers = [getattr(module, name, None) for name in names]
            if not all(isinstance(layer, nn.Module) and _can_stack(layer) for layer in layers):
                continue
            if (len(layers) == 1 or kind is MergedStack) and not any(map(_adapters, layers)):
                continue
            home: Any = module if len(layers) > 1 else layers[0]
            if kind is MergedStack and "forward" not in vars(home):
                continue  # it would not ask for a stack
            stack = vars(home).get("stack")
            if type(stack) is not kind or stack.layers != tuple(layers) or not stack.fits():
                stack = home.__dict__["stack"] = kind(layers)
                if model.device.type == "cuda":
                    torch.cuda.empty_cache()  # the old homes are too small for the next stack
            found.append(stack)
    return found


def active_stack(module: Any) -> AnyStack | None:
    """The stack that stands for a module's layers now."""
    stack: AnyStack | None = vars(module).get("stack")
    return stack if stack is not None and stack.is_active else None


def _base(layer: Any) -> Any:
    return layer.base_layer if hasattr(layer, "base_layer") else layer


def _adapters(layer: Any) -> list[str]:
    """Names of the adapters that a layer uses now."""
    if not hasattr(layer, "lora_A") or layer.disable_adapters:
        return []
    return [name for name in layer.active_adapters if name in layer.lora_A]


def _places(layers: Sequence[Any]) -> list[tuple[int, str, int]]:
    """Layer, name and rank of every adapter."""
    return [
        (number, name, layer.lora_A[name].out_features)
        for number, layer in enumerate(layers)
        for name in _adapters(layer)
    ]


def _can_stack(layer: Any) -> bool:
    """Whether a layer is a plain one whose weight nobody else counts on: no optimizer (which trains it) may hold it."""
    base = _base(layer)
    is_trained = isinstance(base, nn.Linear) and base.weight.requires_grad and not torch.is_inference_mode_enabled()
    if type(base) is not nn.Linear or is_trained:
        return False
    if hasattr(base.weight, "ds_id"):  # spread over processes by ZeRO-3
        return False
    if not hasattr(layer, "lora_A"):
        return True
    parts = [table[name] for table in (layer.lora_A, layer.lora_B) for name in _adapters(layer)]
    return not (layer.merged or layer.lora_variant) and all(type(p) is nn.Linear and p.bias is None for p in parts)
