"""Fewer passes over memory between the matrix products of a language model: adapters, norms, activations, positions.

What is computed stays the same; modules keep their names and weights, only the way to their results is shorter. An
adapter (LoRA) costs two small products and nothing else: peft also copies its input to float32, casts it back, scales
and adds. On a GPU in half precision a norm, an activation and the rotation of queries and keys are one kernel each.

Everything that is not the plain case (dropout, other kinds of adapters, weights that ZeRO-3 spreads over processes) is
left to the module's own forward.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lewis_core.models.features import backbone
from lewis_core.models.stacking import active_stack

LEAST_HEAD = 16
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
        if getattr(layer.post_attention_layernorm, "_compiled_call_impl", None) is None:
            changed += _fuse_module(layer, with_kernels)
    changed += _fuse_module(text.norm, with_kernels)
    norms = [layer.input_layernorm for layer in text.layers[1:]] + [text.norm]
    for layer, norm in zip(text.layers, norms, strict=True):
        if getattr(vars(norm).get("forward"), "__func__", None) is _norm_forward:
            layer.__dict__[FOLLOWING] = norm
    return changed


def has_kernels(module: nn.Module) -> bool:
    """Whether the GPU kernels serve a module: half precision on a GPU, with Triton."""
    parameter = next(module.parameters())
    if not parameter.is_cuda or module.dtype not in (torch.bfloat16, torch.float16):
        return False
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
    elif with_kernels and hasattr(module, "gate_proj") and is_silu(module.act_fn):
        forward = _mlp_forward
    elif with_kernels and hasattr(module, "q_proj") and is_power_of_two(module.head_dim):
        forward = _attention_forward
    if forward is not None:
        module.forward = MethodType(forward, module)
    return forward is not None


def is_power_of_two(size: int) -> bool:
    """Whether the kernels can take heads of a size; they are made for 16 and more."""
    return size >= LEAST_HEAD and size & (size - 1) == 0


def is_silu(activation: Any) -> bool:
    """Whether an activation is the one of :class:`lewis_core.models.kernels.Gate`."""
    return isinstance(activation, nn.SiLU) or type(activation).__name__ == "SiLUActivation"


# Adapters ------------------------------------------------------------------------------------------------------------


class Adapted(torch.autograd.Function):
    """``Adapted.apply(x, weight, bias, a, b, scale)``: x W' + bias + scale (x A') B', for a frozen W.

    x (…, in), weight (out, in), a (rank, in), b (out, rank); adapters are cast to the precision of x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """Two products more than without the adapter."""
        rows = x.reshape(-1, x.shape[-1])
        inner = rows @ a.to(x.dtype).t()
        out = F.linear(rows, weight, bias).addmm_(inner, b.to(x.dtype).t(), alpha=scale)
        ctx.save_for_backward(x, inner, weight, a, b)
        ctx.scale = scale
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        """Gradients of the input and of the adapter."""
        x, inner, weight, a, b = ctx.saved_tensors
        rows, grad = x.reshape(-1, x.shape[-1]), gradients[0].reshape(-1, gradients[0].shape[-1])
        of_inner = (grad @ b.to(grad.dtype)).mul_(ctx.scale)  # (tokens, rank)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (grad @ weight).addmm_(of_inner, a.to(grad.dtype)).view_as(x)
        of_a = (of_inner.t() @ rows).to(a.dtype) if ctx.needs_input_grad[3] else None
        of_b = (grad.t() @ inner).mul_(ctx.scale).to(b.dtype) if ctx.needs_input_grad[4] else None
        return of_x, None, None, of_a, of_b, None


def _adapted_forward(self: Any, x: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
    if stack := active_stack(self):
        [stacked] = stack(x)
        return stacked
    names = [name for name in self.active_adapters if name in self.lora_A]
    base = self.base_layer
    is_plain = len(names) == 1 and not (self.disable_adapters or self.merged or arguments or keywords)
    if not is_plain or not _is_plain_adapter(self, names[0], base, x):
        own: Tensor = type(self).forward(self, x, *arguments, **keywords)
        return own
    [name] = names
    a, b = self.lora_A[name].weight, self.lora_B[name].weight
    out: Tensor = Adapted.apply(x, base.weight, base.bias, a, b, self.scaling[name])
    return out


def _is_plain_adapter(layer: Any, name: str, base: nn.Linear, x: Tensor) -> bool:
    dropout, parts = layer.lora_dropout[name], (layer.lora_A[name], layer.lora_B[name])
    drops = not isinstance(dropout, nn.Identity) and dropout.p > 0 and layer.training
    return (
        type(base) is nn.Linear
        and x.dtype == base.weight.dtype
        and not (drops or name in layer.lora_variant or base.weight.requires_grad)
        and all(part.bias is None for part in parts)
        and not any(hasattr(part.weight, "ds_id") for part in (base, *parts))  # spread over processes
    )


# Norms, activations, positions ---------------------------------------------------------------------------------------


def _norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
    of, normed = self.__dict__.pop(READY, (None, None))
    if of is hidden_states:  # the layer before has normed it with its sum; nothing came between
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
    from lewis_core.models.kernels import Gate

    stack = active_stack(self)
    if stack is not None and stack.rank and _are_few(x):
        from lewis_core.models import adapter_kernels

        gated = adapter_kernels.gate(stack.product(x), stack.after, stack.rank)
        out: Tensor = self.down_proj(gated.view(*x.shape[:-1], -1))
        return out
    gate, up = stack(x) if stack else (self.gate_proj(x), self.up_proj(x))
    out = self.down_proj(Gate.apply(gate, up))
    return out


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
    if stack is not None and stack.rank and _are_few(x) and not has_norms and layer.head_dim >= 2 * LEAST_HEAD:
        from lewis_core.models import adapter_kernels

        queries, groups, _ = (size // layer.head_dim for size in stack.sizes)
        cos, sin = (angles.expand(x.shape[0], -1, -1).flatten(0, 1) for angles in (cos, sin))
        sizes = (queries, groups, layer.head_dim)
        made = adapter_kernels.heads(stack.product(x), stack.after, stack.rank, cos, sin, sizes)
        query, key, value = (part.view(shape) for part in made)
        return query, key, value
    parts = stack(x) if stack else [project(x) for project in (layer.q_proj, layer.k_proj, layer.v_proj)]
    query, key, value = (part.view(shape) for part in parts)
    if has_norms:
        query, key = layer.q_norm(query), layer.k_norm(key)
    return *_rotate(query, key, cos, sin), value


def _are_few(x: Tensor) -> bool:
    from lewis_core.models.adapter_kernels import MOST_ROWS

    return x.numel() // x.shape[-1] <= MOST_ROWS


def _rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate queries and keys (batch, tokens, heads, head dim) by their positions (batch or 1, tokens, head dim)."""
    from lewis_core.models.kernels import Rotate

    cos, sin = (x.expand(query.shape[0], -1, -1).flatten(0, 1) for x in (cos, sin))
    rotated = Rotate.apply(query.flatten(0, 1), key.flatten(0, 1), cos, sin)
    query, key = (x.view(shape) for x, shape in zip(rotated, (query.shape, key.shape), strict=True))
    return query, key
