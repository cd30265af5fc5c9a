"""LoRA layers while a model only writes: one matrix product a layer, or adapters in the model's own precision.

An adapter that is trained is kept in float32, beside its base weight: three products and two casts a layer. A model
that only decodes needs neither. The base weights are never changed: layers point to other tensors for a while, so what
comes back is the same to the last bit.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lewis_core.models.features import backbone
from lewis_core.models.fusing import has_kernels
from lewis_core.models.stacking import Stack, stacks_of


class WritingWeights:
    """Weights for decoding, kept in tensors of their own, which a CUDA graph may refer to.

    On a CPU in float32 or float64, an adapter is added to a copy of its base weight (exact up to rounding). Elsewhere
    it stays apart, as a sum in bfloat16 would lose most of a small adapter; it is cast to the base's precision once.
    In half precision on a GPU, layers of the same input are one product (:mod:`lewis_core.models.stacking`).

    Args:
        model: A model of transformers, or its PEFT wrapper.
    """

    def __init__(self, model: Any) -> None:
        from peft.tuners.lora import LoraLayer

        self._layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
        self._text = backbone(model).language_model
        self._copies: dict[int, Tensor] = {}
        self.state: tuple[Any, ...] = ()
        """Which tensors a step of decoding reads: a CUDA graph is good for as long as this stays the same."""

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let the model's layers use these weights, brought up to date, until the block ends."""
        swapped: list[tuple[nn.Parameter, Tensor]] = []
        merged: list[Any] = []
        stacks = stacks_of(self._text) if has_kernels(self._text) else []
        try:
            for stack in stacks:
                stack.is_active = stack.refresh()
            self.state = self._look(stacks)
            stacked = {layer for stack in stacks if stack.is_active for layer in stack.layers}
            for layer in self._layers:
                if layer in stacked:
                    continue
                if layer.disable_adapters or layer.merged or layer.lora_variant:
                    continue
                base = layer.get_base_layer()
                names = [name for name in layer.active_adapters if name in layer.lora_A]
                if _can_merge(base):
                    total = sum((layer.get_delta_weight(name) for name in names), start=base.weight.data)
                    swapped.append((base.weight, base.weight.data))
                    base.weight.data = self._keep(base.weight, total)
                    layer.merged_adapters.extend(names)
                    merged.append(layer)
                    continue
                for parameter in (table[name].weight for table in (layer.lora_A, layer.lora_B) for name in names):
                    if parameter.dtype != base.weight.dtype and base.weight.dtype.is_floating_point:
                        swapped.append((parameter, parameter.data))
                        parameter.data = self._keep(parameter, parameter.data.to(base.weight.dtype))
            yield
        finally:
            for stack in stacks:
                stack.is_active = False
            for layer in merged:
                layer.merged_adapters.clear()
            for parameter, original in swapped:
                parameter.data = original

    def _look(self, stacks: Sequence[Stack]) -> tuple[Any, ...]:
        adapters = (
            () if layer.disable_adapters else tuple((name, layer.scaling.get(name)) for name in layer.active_adapters)
            for layer in self._layers
        )
        return *adapters, *(id(stack) if stack.is_active else 0 for stack in stacks)

    def _keep(self, parameter: nn.Parameter, value: Tensor) -> Tensor:
        """Put a value where the last one of this parameter was."""
        kept = self._copies.get(id(parameter))
        if kept is None or kept.device != value.device:
            kept = self._copies[id(parameter)] = torch.empty_like(value)
        return kept.copy_(value)


def _can_merge(base: Any) -> bool:
    return (
        type(base) is nn.Linear
        and base.weight.device.type == "cpu"
        and base.weight.dtype in (torch.float32, torch.float64)
    )
