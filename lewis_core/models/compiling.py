"""Compile the parts of a model that are many small kernels: norms and MLPs of its language model and vision tower.

The graphs are small and hold no attention, so they serve packed rows, ordinary calls, decoding and training alike, and
need not be compiled again for new lengths. The first calls take about a minute; processes that live shorter lose.
"""

from typing import Any

from lewis_core.models.features import backbone


def compile_layers(model: Any, backend: str = "inductor") -> int:
    """Compile every norm and MLP, in place, at its first call.

    Adapters may be added afterwards, as long as nothing has been called yet. A second time does nothing.

    Args:
        model: A Qwen-VL model of transformers, or its PEFT wrapper.
        backend: Of ``torch.compile``.

    Returns:
        How many modules will be compiled now.
    """
    text, vision = backbone(model).language_model, backbone(model).visual
    parts = [text.norm]
    for layer in text.layers:
        parts += [layer.input_layernorm, layer.post_attention_layernorm, layer.mlp]
    for block in vision.blocks:
        parts += [block.norm1, block.norm2, block.mlp]
    new = [part for part in parts if part._compiled_call_impl is None]
    for part in new:
        part.compile(dynamic=True, backend=backend)
    return len(new)
