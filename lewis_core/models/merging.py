"""LoRA layers while a model only writes: stacked with others, or adapters in the model's own precision.

An adapter that is trained is kept in float32, beside its base weight: three products and two casts a layer. A model
that only decodes needs neither. No weight is ever changed: layers are stood in for, or adapters point to other tensors
for a while, so what comes back is the same to the last bit.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lewis_core.models.features import backbone
from lewis_core.models.fusing import has_kernels
from lewis_core.models.stacking import AnyStack, MergedStack, Stack, stacks_of


class WritingWeights:
    """Weights for decoding, kept in tensors of their own, which a CUDA graph may refer to.

    In half precision on a GPU, and in float32 or float64 on a CPU, layers of the same input are one product
    (:mod:`lewis_core.models.stacking`). Elsewhere adapters are cast to their base's precision once.

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
        kind = _kind_of_stacks(self._text)
        stacks = stacks_of(self._text, kind) if kind else []
        try:
            for stack in stacks:
                stack.is_active = stack.refresh()
            self.state = self._look(stacks)
            stacked = {layer for stack in stacks if stack.is_active for layer in stack.layers}
            for layer in self._layers:
                if layer in stacked or layer.disable_adapters or layer.merged or layer.lora_variant:
                    continue
                base = layer.get_base_layer()
                names = [name for name in layer.active_adapters if name in layer.lora_A]
                for parameter in (table[name].weight for table in (layer.lora_A, layer.lora_B) for name in names):
                    if parameter.dtype != base.weight.dtype and base.weight.dtype.is_floating_point:
                        swapped.append((parameter, parameter.data))
                        parameter.data = self._keep(parameter, parameter.data.to(base.weight.dtype))
            yield
        finally:
            for stack in stacks:
                stack.is_active = False
            for parameter, original in swapped:
                parameter.data = original

    def _look(self, stacks: Sequence[AnyStack]) -> tuple[Any, ...]:
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


def _kind_of_stacks(text: Any) -> type[AnyStack] | None:
    if text.device.type == "cpu" and text.dtype in (torch.float32, torch.float64):
        return MergedStack
    return Stack if has_kernels(text) else None
