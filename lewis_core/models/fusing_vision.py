"""Fewer passes over memory between the matrix products of a vision tower, as :mod:`lewis_core.models.fusing` has them.

What is computed stays the same; modules keep their names and weights. Patches are embedded by a matrix product on any
device. On a GPU in half precision, and without gradients (the tower is frozen), the rotation of queries and keys, an
activation, and a sum with the norm of it are one kernel each. On a CPU in float32, and without gradients, products are
those of :mod:`lewis_core.models.wide_products`.

Everything else (gradients, attention that takes images one by one, weights that ZeRO-3 spreads over processes, an
activation or a norm that is not known) is left to the module's own forward.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lewis_core.models.attention import IMAGE_ATTENTION, image_attention
from lewis_core.models.features import backbone
from lewis_core.models.fusing import FOLLOWING, READY, has_kernels, is_silu
from lewis_core.models.wide_products import linear, widen


def fuse_vision(model: Any) -> int:
    """Shorten the way through a model's vision tower, in place; a second time changes nothing more.

    Parts that are compiled are left alone.

    Args:
        model: A Qwen-VL model of transformers, or its PEFT wrapper.

    Returns:
        How many modules were changed now.
    """
    vision = backbone(model).visual
    changed = int(_is_product(vision.patch_embed.proj) and _shorten(vision.patch_embed, _embed_forward))
    return changed + (_fuse_blocks(vision) if has_kernels(vision) else widen([vision]))


def _fuse_blocks(vision: Any) -> int:
    changed = 0
    for block in vision.blocks:
        changed += _shorten(block.attn, _attention_forward)
        if (of_mlp := _mlp_forward(block.mlp)) is not None:
            changed += _shorten(block.mlp, of_mlp)
        if _is_known(block.norm2):
            changed += _shorten(block, _block_forward)
    for block, following in zip(vision.blocks, vision.blocks[1:], strict=False):
        norm = following.norm1
        if _is_known(norm) and _is_short(block, _block_forward):
            changed += _shorten(norm, _norm_forward)
            if _is_short(norm, _norm_forward):
                block.__dict__[FOLLOWING] = norm
    return changed


def _shorten(module: Any, forward: Any) -> bool:
    if "forward" in vars(module) or module._compiled_call_impl is not None:
        return False
    module.forward = MethodType(forward, module)
    return True


def _is_short(module: Any, forward: Any) -> bool:
    return getattr(vars(module).get("forward"), "__func__", None) is forward


def _is_product(layer: Any) -> bool:
    """Whether a convolution takes every patch for itself."""
    return isinstance(layer, nn.Conv3d) and layer.kernel_size == layer.stride and layer.groups == 1


def _is_known(norm: Any) -> bool:
    """Whether the kernel computes a norm: by the root mean square, or by mean and variance with a bias."""
    if norm._compiled_call_impl is not None:
        return False
    return hasattr(norm, "variance_epsilon") or (isinstance(norm, nn.LayerNorm) and norm.bias is not None)


def _is_plain(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernels may take an input: without gradients, in a weight's precision, the weight in its place."""
    return not torch.is_grad_enabled() and x.dtype == weight.dtype and not hasattr(weight, "ds_id")


def _embed_forward(self: Any, hidden_states: Tensor) -> Tensor:
    """Patches (…, channels x frames x height x width) to (patches, width)."""
    weight = self.proj.weight
    if hasattr(weight, "ds_id"):  # gathered when the layer is called
        own: Tensor = type(self).forward(self, hidden_states)
        return own
    patches = hidden_states.reshape(-1, weight[0].numel()).to(weight.dtype)
    project = F.linear if torch.is_grad_enabled() else linear
    return project(patches, weight.flatten(1), self.proj.bias)


def _norm_forward(self: Any, x: Tensor) -> Tensor:
    of, normed = self.__dict__.pop(READY, (None, None))
    is_ready = of is x and not torch.is_grad_enabled()
    out: Tensor = normed if is_ready else type(self).forward(self, x)
    return out


def _block_forward(self: Any, hidden_states: Tensor, **arguments: Any) -> Tensor:
    """A block of all three architectures: each sum and the norm that reads it are one pass."""
    if not _is_plain(hidden_states, self.norm2.weight):
        own: Tensor = type(self).forward(self, hidden_states, **arguments)
        return own
    attended = self.attn(self.norm1(hidden_states), **arguments)
    total, normed = _add_norm(hidden_states, attended, self.norm2)
    of_mlp: Tensor = self.mlp(normed)
    if (following := self.__dict__.get(FOLLOWING)) is None:
        return total + of_mlp
    out, normed = _add_norm(total, of_mlp, following)
    following.__dict__[READY] = out, normed
    return out


def _add_norm(x: Tensor, other: Tensor, norm: Any) -> tuple[Tensor, Tensor]:
    from lewis_core.models.kernels import add_norm

    if hasattr(norm, "variance_epsilon"):
        return add_norm(x, other, norm.weight, norm.variance_epsilon)
    return add_norm(x, other, norm.weight, norm.eps, norm.bias)


def _attention_forward(
    self: Any,
    hidden_states: Tensor,
    cu_seqlens: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    max_seqlen: int | None = None,
    **arguments: Any,
) -> Tensor:
    """The attention of all three architectures, over all images at once."""
    at_once = self.config._attn_implementation == IMAGE_ATTENTION and max_seqlen is not None
    if not at_once or not _is_plain(hidden_states, self.qkv.weight):
        own: Tensor = type(self).forward(self, hidden_states, cu_seqlens, position_embeddings, max_seqlen, **arguments)
        return own
    from lewis_core.models.kernels import Rotate

    parts = self.qkv(hidden_states).view(len(hidden_states), 3, self.num_heads, -1)  # head dim is last
    rotated = Rotate.apply(parts[:, 0], parts[:, 1], *position_embeddings)
    query, key, value = (x.transpose(0, 1)[None] for x in (*rotated, parts[:, 2]))
    out, _ = image_attention(
        self, query, key, value, None, self.scaling, cu_seq_lens_q=cu_seqlens, max_length_q=max_seqlen
    )
    projected: Tensor = self.proj(out.reshape(len(hidden_states), -1))
    return projected


def _mlp_forward(mlp: Any) -> Any:
    """The short way through an MLP, or ``None``: torch has a kernel for the activation already, or it is not known."""
    if hasattr(mlp, "fc1") and type(mlp.act).__name__ == "QuickGELUActivation":
        return _quick_gelu_forward
    if hasattr(mlp, "gate_proj") and is_silu(mlp.act_fn):
        return _gated_forward
    return None


def _quick_gelu_forward(self: Any, x: Tensor) -> Tensor:
    if not _is_plain(x, self.fc1.weight):
        own: Tensor = type(self).forward(self, x)
        return own
    from lewis_core.models.kernels import quick_gelu_

    out: Tensor = self.fc2(quick_gelu_(self.fc1(x)))
    return out


def _gated_forward(self: Any, x: Tensor) -> Tensor:
    if not _is_plain(x, self.gate_proj.weight):
        own: Tensor = type(self).forward(self, x)
        return own
    from lewis_core.models.kernels import Gate

    out: Tensor = self.down_proj(Gate.apply(self.gate_proj(x), self.up_proj(x)))
    return out
