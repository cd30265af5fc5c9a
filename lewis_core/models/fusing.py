"""Fewer passes over memory between the matrix products of a language model: adapters, norms, activations, positions.

What is computed stays the same; modules keep their names and weights, only the way to their results is shorter.
Adapters (LoRA) of layers that read the same input share their products (:mod:`lewis_core.models.adapted`). On a GPU in
half precision a norm, an activation and the rotation of queries and keys are one kernel each. On a CPU in float32,
products are those of :mod:`lewis_core.models.wide_products`.

Everything that is not the plain case (dropout, other kinds of adapters, weights that ZeRO-3 spreads over processes) is
left to the module's own forward.
"""

from collections.abc import Sequence
from functools import cache
from itertools import chain
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lewis_core.models.adapted import Adapted, AdaptedMlp, Layer
from lewis_core.models.features import backbone
from lewis_core.models.stacking import RANKS, Stack, active_stack
from lewis_core.models.wide_products import widen

LEAST_HEAD = 16
HALF = (torch.bfloat16, torch.float16)
FOLLOWING, READY = "following_norm", "ready"
"""What modules keep: a layer, the norm that reads its output; a norm, a sum and what it makes of it."""


def fuse(model: Any) -> int:
    """Shorten the way through a model's language layers, in place; a second time changes nothing more.

    Call it when adapters are in place; parts that are compiled are left alone.

    Args:
        model: A Qwen-VL model of transformers, or its PEFT wrapper.

    Returns:
        How many modules were changed now.
    """
    text = backbone(model).language_model
    with_kernels = has_kernels(text)
    changed = 0
    for layer in text.layers:
        for part in (layer.input_layernorm, layer.post_attention_layernorm, layer.self_attn, layer.mlp):
            if getattr(part, "_compiled_call_impl", None) is None:
                changed += sum(_fuse_module(module, with_kernels) for module in part.modules())
                changed += widen([part])
        if getattr(layer.post_attention_layernorm, "_compiled_call_impl", None) is None:
            changed += _fuse_module(layer, with_kernels)
    changed += _fuse_module(text.norm, with_kernels) + widen([model.get_output_embeddings()])
    norms = [layer.input_layernorm for layer in text.layers[1:]] + [text.norm]
    for layer, norm in zip(text.layers, norms, strict=True):
        if getattr(vars(norm).get("forward"), "__func__", None) is _norm_forward:
            layer.__dict__[FOLLOWING] = norm
    return changed


def has_kernels(module: nn.Module) -> bool:
    """Whether the GPU kernels serve a module: half precision on a GPU, with Triton."""
    return next(module.parameters()).is_cuda and module.dtype in HALF and _has_triton()


def _take(x: Tensor) -> bool:
    """Whether the GPU kernels take a tensor."""
    return x.is_cuda and x.dtype in HALF and _has_triton()


@cache
def _has_triton() -> bool:
    try:
        import lewis_core.models.kernels  # noqa: F401
    except ImportError:  # torch can be installed without Triton
        return False
    return True


def _fuse_module(module: Any, with_kernels: bool) -> bool:
    if "forward" in vars(module) or getattr(module, "_compiled_call_impl", None) is not None:
        return False
    forward: Any = None
    if hasattr(module, "lora_A") and isinstance(getattr(module, "base_layer", None), nn.Linear):
        forward = _adapted_forward
    elif with_kernels and hasattr(module, "variance_epsilon"):
        forward = _norm_forward
    elif with_kernels and hasattr(module, "post_attention_layernorm"):
        forward = _layer_forward
    elif hasattr(module, "gate_proj") and is_silu(module.act_fn):
        forward = _mlp_forward if with_kernels or _has_adapters(module) else None
    elif hasattr(module, "q_proj") and is_power_of_two(module.head_dim):
        forward = _attention_forward if with_kernels or _has_adapters(module) else None
    if forward is not None:
        module.forward = MethodType(forward, module)
    return forward is not None


def _has_adapters(module: nn.Module) -> bool:
    return any(hasattr(part, "lora_A") for part in module.children())


def is_power_of_two(size: int) -> bool:
    """Whether the kernels can take heads of a size; they are made for 16 and more."""
    return size >= LEAST_HEAD and size & (size - 1) == 0


def is_silu(activation: Any) -> bool:
    """Whether an activation is the one of :class:`lewis_core.models.kernels.Gate`."""
    return isinstance(activation, nn.SiLU) or type(activation).__name__ == "SiLUActivation"


# Adapters ------------------------------------------------------------------------------------------------------------


def _adapted_forward(self: Any, x: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
    if stack := active_stack(self):
        [stacked] = stack(x)
        return stacked
    if _is_spread(self.base_layer):
        del self.forward  # for good: to ask again for every token of a rollout takes time
    plain = None if arguments or keywords else _plain_adapter(self, x)
    if plain is None:
        own: Tensor = type(self).forward(self, x, *arguments, **keywords)
        return own
    scale, layer = plain
    out: Tensor = Adapted.apply(x, scale, *layer)[0]
    return out


def _together(layers: Sequence[Any], x: Tensor) -> Sequence[Tensor]:
    """Outputs of layers that read the same input, (…, out) each; plain adapters of the same scale share products."""
    plain = _plain_adapters(layers, x)
    if plain is None:
        return [layer(x) for layer in layers]
    scale, parts = plain
    outs: tuple[Tensor, ...] = Adapted.apply(x, scale, *chain.from_iterable(parts))
    return outs


def _plain_adapters(layers: Sequence[Any], x: Tensor) -> tuple[float, list[Layer]] | None:
    """Scale and tensors of layers, if all of them are the plain case with the same scale."""
    scales, found = set(), []
    for layer in layers:
        plain = _plain_adapter(layer, x) if _is_adapted(layer) else None
        if plain is None:
            return None
        scales.add(plain[0])
        found.append(plain[1])
    return (scales.pop(), found) if len(scales) == 1 else None


def _is_spread(layer: nn.Module) -> bool:
    """Whether ZeRO-3 spreads a layer's weight over processes, which is looked at without having it brought here."""
    weights: Any = layer._parameters
    return hasattr(dict.get(weights, "weight"), "ds_id")


def _is_adapted(layer: Any) -> bool:
    """Whether a layer's forward is ours, and nobody wants to be told of it."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return getattr(vars(layer).get("forward"), "__func__", None) is _adapted_forward and not any(hooks)


def _plain_adapter(layer: Any, x: Tensor) -> tuple[float, Layer] | None:
    """Scale and tensors of a layer whose adapter can do without peft."""
    if layer.merged or layer.disable_adapters or _is_spread(layer.base_layer):
        return None
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(names) != 1:
        return None
    [name], base = names, layer.base_layer
    dropout, parts = layer.lora_dropout[name], (layer.lora_A[name], layer.lora_B[name])
    drops = not isinstance(dropout, nn.Identity) and dropout.p > 0 and layer.training
    is_plain = (
        type(base) is nn.Linear
        and x.dtype == base.weight.dtype
        and not (drops or name in layer.lora_variant)
        and not any(weight is not None and weight.requires_grad for weight in (base.weight, base.bias))
        and all(part.bias is None for part in parts)
    )
    a, b = (part.weight for part in parts)
    return (layer.scaling[name], Layer(base.weight, base.bias, a, b)) if is_plain else None


# Norms, activations, positions ---------------------------------------------------------------------------------------


def _norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
    of, normed = self.__dict__.pop(READY, (None, None))
    if of is hidden_states and not torch.is_grad_enabled():  # the layer before has normed it; nothing came between
        ready: Tensor = normed
        return ready
    if hidden_states.dtype != self.weight.dtype:
        own: Tensor = type(self).forward(self, hidden_states)
        return own
    if not torch.is_grad_enabled() and hidden_states.is_cuda:
        from lewis_core.models.kernels import add_norm

        return add_norm(hidden_states, None, self.weight, self.variance_epsilon)[1]
    with torch.autocast(hidden_states.device.type, enabled=False):  # which would answer in float32
        return F.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)


def _layer_forward(self: Any, hidden_states: Tensor, **arguments: Any) -> Tensor:
    """A layer of all three architectures; without gradients, a sum and the norm of it are one pass."""
    norm = self.post_attention_layernorm
    is_spread = hasattr(norm.weight, "ds_id")  # by ZeRO-3, which gathers a module's weights when it is called
    if torch.is_grad_enabled() or is_spread or hidden_states.dtype != norm.weight.dtype:
        own: Tensor = type(self).forward(self, hidden_states, **arguments)
        return own
    from lewis_core.models.kernels import add_norm

    attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **arguments)
    total, normed = add_norm(hidden_states, attended, norm.weight, norm.variance_epsilon)
    of_mlp: Tensor = self.mlp(normed)
    if (following := self.__dict__.get(FOLLOWING)) is None or hasattr(following.weight, "ds_id"):
        return total + of_mlp
    out, normed = add_norm(total, of_mlp, following.weight, following.variance_epsilon)
    following.__dict__[READY] = out, normed
    return out


def _mlp_forward(self: Any, x: Tensor) -> Tensor:
    stack = active_stack(self)
    if isinstance(stack, Stack) and stack.rank and _are_few(x):
        from lewis_core.models import adapter_kernels

        gated = adapter_kernels.gate(stack.product(x), stack.after, stack.rank)
        out: Tensor = self.down_proj(gated.view(*x.shape[:-1], -1))
        return out
    layers = (self.gate_proj, self.up_proj, self.down_proj)
    plain = _plain_adapters(layers, x) if stack is None and _take(x) else None
    if plain is not None and _have_same_rank(plain[1]):
        scale, parts = plain
        out = AdaptedMlp.apply(x, scale, *chain.from_iterable(parts))
        return out
    gate, up = stack(x) if stack else _together((self.gate_proj, self.up_proj), x)
    out = self.down_proj(_activate(gate, up))
    return out


def _have_same_rank(layers: Sequence[Layer]) -> bool:
    """Whether all adapters have the same rank, one that kernels can take."""
    ranks = {len(layer.a) for layer in layers}
    return len(ranks) == 1 and ranks <= RANKS


def _activate(gate: Tensor, up: Tensor) -> Tensor:
    if not _take(gate):
        return F.silu(gate) * up
    from lewis_core.models.kernels import Gate

    gated: Tensor = Gate.apply(gate, up)
    return gated


def _attention_forward(
    self: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    **arguments: Any,
) -> tuple[Tensor, Any]:
    """The attention of all three architectures, as in transformers."""
    attend = ALL_ATTENTION_FUNCTIONS.get(self.config._attn_implementation)
    if attend is None:  # eager, which is no entry of the table
        own: tuple[Tensor, Any] = type(self).forward(
            self,
            hidden_states,
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            **arguments,
        )
        return own
    query, key, value = (x.transpose(1, 2) for x in _heads(self, hidden_states, *position_embeddings))
    if past_key_values is not None:
        key, value = past_key_values.update(key, value, self.layer_idx)
    dropout = self.attention_dropout if self.training else 0.0
    out, weights = attend(
        self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **arguments
    )  # (batch, tokens, heads, head dim)
    return self.o_proj(out.reshape(*hidden_states.shape[:-1], -1)), weights


def _heads(layer: Any, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys, rotated, and values: (batch, tokens, heads, head dim)."""
    shape, stack = (*x.shape[:-1], -1, layer.head_dim), active_stack(layer)
    has_norms = hasattr(layer, "q_norm")
    if isinstance(stack, Stack) and stack.rank and _are_few(x) and not has_norms and layer.head_dim >= 2 * LEAST_HEAD:
        from lewis_core.models import adapter_kernels

        queries, groups, _ = (size // layer.head_dim for size in stack.sizes)
        cos, sin = (angles.expand(x.shape[0], -1, -1).flatten(0, 1) for angles in (cos, sin))
        sizes = (queries, groups, layer.head_dim)
        made = adapter_kernels.heads(stack.product(x), stack.after, stack.rank, cos, sin, sizes)
        query, key, value = (part.view(shape) for part in made)
        return query, key, value
    parts = stack(x) if stack else _together((layer.q_proj, layer.k_proj, layer.v_proj), x)
    query, key, value = (part.view(shape) for part in parts)
    if has_norms:
        query, key = layer.q_norm(query), layer.k_norm(key)
    return *_rotate(query, key, cos, sin), value


def _are_few(x: Tensor) -> bool:
    from lewis_core.models.adapter_kernels import MOST_ROWS

    return x.numel() // x.shape[-1] <= MOST_ROWS


def _rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate queries and keys (batch, tokens, heads, head dim) by their positions (batch or 1, tokens, head dim)."""
    if not _take(query):
        from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb

        plain: tuple[Tensor, Tensor] = apply_rotary_pos_emb(query, key, cos, sin, unsqueeze_dim=2)
        return plain
    from lewis_core.models.kernels import Rotate

    cos, sin = (x.expand(query.shape[0], -1, -1).flatten(0, 1) for x in (cos, sin))
    rotated = Rotate.apply(query.flatten(0, 1), key.flatten(0, 1), cos, sin)
    query, key = (x.view(shape) for x, shape in zip(rotated, (query.shape, key.shape), strict=True))
    return query, key
