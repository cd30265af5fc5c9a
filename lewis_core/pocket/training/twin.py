"""A plain-torch twin of Qwen2-VL, for training only.

It has the parameter names of transformers' ``Qwen2VLForConditionalGeneration``, so its weights load
there unchanged, and a test compares the logits. It exists because the general implementation loops
over images and builds positions in Python, which dominates the time of a model this small and
cannot be recorded in a CUDA graph. It knows square images of one size that come first in the
prompt, and nothing else.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
PATCH, MERGE, TEMPORAL = 14, 2, 2
IMAGE_OFFSET = 4
"""Tokens before the first image token: ``<|im_start|>``, ``user``, newline, ``<|vision_start|>``."""

Json = Mapping[str, Any]
Rope = tuple[Tensor, Tensor]


def normalise(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Bring 0..255 to what the vision towers expect; mean and std are ``(1, 3, 1, 1)``."""
    return (pixels.float() / 255 - mean) / std


def patchify(pixels: Tensor) -> Tensor:
    """Cut normalised images ``(N, 3, S, S)`` into patches, ordered as transformers orders them.

    Returns:
        ``(N, (S / 14) ** 2, 1176)``.
    """
    count, channels, size, _ = pixels.shape
    blocks = size // PATCH // MERGE
    split = pixels.reshape(count, channels, blocks, MERGE, PATCH, blocks, MERGE, PATCH)
    order = split.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)
    frames = order.expand(-1, -1, -1, -1, -1, -1, TEMPORAL, -1, -1)
    return frames.reshape(count, (size // PATCH) ** 2, channels * TEMPORAL * PATCH * PATCH)


def _rotate(x: Tensor, rope: Rope) -> Tensor:
    cos, sin = (part.to(x.dtype) for part in rope)
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat((-high, low), -1) * sin


class _RmsNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x = F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), 1e-6)
        return x.to(torch.bfloat16) if x.is_cuda and torch.is_autocast_enabled() else x


class _VisionAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, rope: Rope) -> Tensor:
        count, length, width = x.shape
        qkv = self.qkv(x).view(count, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(_rotate(query, rope), _rotate(key, rope), value)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(count, length, width))
        return out


class _VisionMlp(nn.Module):
    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, width * ratio), nn.Linear(width * ratio, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        out: Tensor = self.fc2(x * torch.sigmoid(1.702 * x))
        return out


class _VisionBlock(nn.Module):
    def __init__(self, width: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = _VisionAttention(width, heads), _VisionMlp(width, ratio)

    def forward(self, x: Tensor, rope: Rope) -> Tensor:
        x = x + self.attn(self.norm1(x), rope)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class _PatchEmbed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        kernel = (TEMPORAL, PATCH, PATCH)
        self.proj = nn.Conv3d(3, width, kernel, kernel, bias=False)

    def forward(self, patches: Tensor) -> Tensor:
        return F.linear(patches, self.proj.weight.flatten(1))


class _Merger(nn.Module):
    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        merged = width * MERGE**2
        self.ln_q = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(merged, merged), nn.GELU(), nn.Linear(merged, out_width))

    def forward(self, x: Tensor) -> Tensor:
        count, length, width = x.shape
        merged = self.ln_q(x).view(count, length // MERGE**2, width * MERGE**2)
        out: Tensor = self.mlp(merged)
        return out


class Vision(nn.Module):
    """The vision tower: patches to visual tokens of the language model's width."""

    def __init__(self, config: Json) -> None:
        """Build it from the ``vision_config`` of a Qwen2-VL ``config.json``."""
        super().__init__()
        width, heads = config["embed_dim"], config["num_heads"]
        self.patch_embed = _PatchEmbed(width)
        self.blocks = nn.ModuleList(_VisionBlock(width, heads, config["mlp_ratio"]) for _ in range(config["depth"]))
        self.merger = _Merger(width, config["hidden_size"])
        self.head_width = width // heads

    def rope(self, grid: int, device: torch.device) -> Rope:
        """Return cosines and sines ``(grid ** 2, head width)``, in the order of the patches."""
        steps = torch.arange(grid, device=device)
        rows, columns = torch.meshgrid(steps, steps, indexing="ij")
        blocks = grid // MERGE

        def blocked(t: Tensor) -> Tensor:
            return t.reshape(blocks, MERGE, blocks, MERGE).permute(0, 2, 1, 3).reshape(-1)

        half = self.head_width // 2
        exponents = torch.arange(0, half, 2, device=device).float() / half
        inverse = 1.0 / (10000.0**exponents)
        angles = torch.cat([blocked(t)[:, None] * inverse for t in (rows, columns)] * 2, -1)
        return angles.cos(), angles.sin()

    def forward(self, patches: Tensor) -> Tensor:
        """Return visual tokens ``(N, patches / 4, hidden)``."""
        rope = self.rope(math.isqrt(patches.shape[1]), patches.device)
        x = self.patch_embed(patches)
        for block in self.blocks:
            x = block(x, rope)
        out: Tensor = self.merger(x)
        return out


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, width // heads
        kv_width = kv_heads * self.head_width
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, kv_width)
        self.v_proj, self.o_proj = nn.Linear(width, kv_width), nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, rope: Rope) -> Tensor:
        count, length, width = x.shape

        def split(t: Tensor, heads: int) -> Tensor:
            return t.view(count, length, heads, self.head_width).transpose(1, 2)

        query = _rotate(split(self.q_proj(x), self.heads), rope)
        key = _rotate(split(self.k_proj(x), self.kv_heads), rope)
        value = split(self.v_proj(x), self.kv_heads)
        mixed = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=self.heads != self.kv_heads
        )
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(count, length, width))
        return out


class _Mlp(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class _Layer(nn.Module):
    def __init__(self, config: Json) -> None:
        super().__init__()
        width = config["hidden_size"]
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.self_attn = _Attention(width, heads, kv_heads)
        self.mlp = _Mlp(width, config["intermediate_size"])
        self.input_layernorm, self.post_attention_layernorm = _RmsNorm(width), _RmsNorm(width)

    def forward(self, x: Tensor, rope: Rope) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class _Language(nn.Module):
    def __init__(self, config: Json) -> None:
        super().__init__()
        width, rope = config["hidden_size"], config["rope_parameters"]
        self.embed_tokens = nn.Embedding(config["vocab_size"], width)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config["num_hidden_layers"]))
        self.norm = _RmsNorm(width)
        self.head_width = width // config["num_attention_heads"]
        self.sections, self.theta = list(rope["mrope_section"]), rope["rope_theta"]

    def rope(self, positions: Tensor) -> Rope:
        """Turn M-RoPE positions ``(3, L)`` into cosines and sines ``(L, head width)``."""
        steps = torch.arange(0, self.head_width, 2, device=positions.device).float()
        angles = positions[..., None].float() / (self.theta ** (steps / self.head_width))
        parts = [part[axis] for axis, part in enumerate(angles.split(self.sections, -1))]
        doubled = torch.cat(parts * 2, -1)
        return doubled.cos(), doubled.sin()

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        rope = self.rope(positions)
        for layer in self.layers:
            x = layer(x, rope)
        out: Tensor = self.norm(x)
        return out


class _Inner(nn.Module):
    def __init__(self, config: Json) -> None:
        super().__init__()
        self.visual = Vision(config["vision_config"])
        self.language_model = _Language(config["text_config"])


class QwenTwin(nn.Module):
    """Qwen2-VL for training on square images of one size."""

    def __init__(self, config: Json) -> None:
        """Build it, with random weights, from the content of a Qwen2-VL ``config.json``."""
        super().__init__()
        self.model = _Inner(config)
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(PIXEL_STD).view(1, 3, 1, 1), persistent=False)
        self.apply(_init_weights)

    def see(self, pixels: Tensor) -> Tensor:
        """Turn images ``(N, 3, S, S)`` of 0..255 into visual tokens ``(N, T, hidden)``."""
        pixels = normalise(pixels, self.get_buffer("mean"), self.get_buffer("std"))
        out: Tensor = self.model.visual(patchify(pixels))
        return out

    def read(self, ids: Tensor, visual: Tensor | None = None) -> Tensor:
        """Return hidden states ``(B, L, hidden)``; visual tokens replace the image tokens."""
        x = self.model.language_model.embed_tokens(ids)
        num_visual = 0 if visual is None else visual.shape[1]
        if visual is not None:
            head, tail = x[:, :IMAGE_OFFSET], x[:, IMAGE_OFFSET + num_visual :]
            x = torch.cat([head, visual.to(x.dtype), tail], 1)
        positions = build_positions(ids.shape[1], num_visual, ids.device)
        out: Tensor = self.model.language_model(x, positions)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """Score the vocabulary with the tied embeddings."""
        return F.linear(hidden, self.model.language_model.embed_tokens.weight.to(hidden.dtype))


def build_positions(length: int, num_visual: int, device: torch.device) -> Tensor:
    """Return M-RoPE positions ``(3, length)`` of a row whose image, if any, comes first."""
    if not num_visual:
        return torch.arange(length, device=device).expand(3, -1)
    grid = math.isqrt(num_visual)
    steps = torch.arange(grid, device=device)
    rows, columns = torch.meshgrid(steps, steps, indexing="ij")
    image = torch.stack([torch.zeros_like(rows), rows, columns]).reshape(3, -1) + IMAGE_OFFSET
    before = torch.arange(IMAGE_OFFSET, device=device).expand(3, -1)
    after = torch.arange(length - IMAGE_OFFSET - num_visual, device=device).expand(3, -1)
    return torch.cat([before, image, after + IMAGE_OFFSET + grid], 1)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding | nn.Conv3d):
        nn.init.normal_(module.weight, std=0.02)
