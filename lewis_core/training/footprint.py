"""GPU memory that a training needs, from a model's ``config.json`` alone. Imports no torch.

The parts are counted as DeepSpeed's and PyTorch's documents say, activations by the formula of
:mod:`lewis_core.training.memory`, which was measured. ``infra/docs/training.md`` compares the sums with measurements.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lewis_core.config.base import ModelRef
from lewis_core.config.grpo import GrpoConfig
from lewis_core.errors import ConfigError, ModelError
from lewis_core.models.files import resolve_model_path

GIB = 1 << 30
CONTEXT = 1.5 * GIB
"""CUDA's own memory, and the allocator's rounding."""
PROMPT_TEXT = 256
"""Tokens of a prompt's text, at most."""
SUB_GROUP = 1e9
"""Weights that ZeRO-3 updates at once (``sub_group_size`` of its settings)."""
SERVICE_TOKENS = 16_384
"""Tokens that a model service reads in one forward pass, at most."""
LOGIT_ROWS = 1024
"""Rows of logits that are in memory at once, in float32, with what is computed from them."""
_VISION = {"depth": 32, "hidden_size": 1280, "patch_size": 14, "spatial_merge_size": 2}


def _known(hidden: int, mlp: int, layers: int, heads: int, kv: int, **more: Any) -> dict[str, Any]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return {**dict(zip(names, (hidden, mlp, layers, heads, kv), strict=True)), "vocab_size": 151_936, **more}


_VISION_3 = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "patch_size": 16, "spatial_merge_size": 2}
KNOWN: Mapping[str, dict[str, Any]] = {
    "qwen2-vl-2b": _known(1536, 8960, 28, 12, 2, tie_word_embeddings=True),
    "qwen2-vl-7b": _known(3584, 18_944, 28, 28, 4, vocab_size=152_064),
    "qwen2.5-vl-3b": _known(2048, 11_008, 36, 16, 2, tie_word_embeddings=True),
    "qwen2.5-vl-7b": _known(3584, 18_944, 28, 28, 4, vocab_size=152_064),
    "qwen3-vl-4b": _known(2560, 9728, 36, 32, 8, head_dim=128, tie_word_embeddings=True, vision_config=_VISION_3),
    "qwen3-vl-8b": _known(4096, 12_288, 36, 32, 8, head_dim=128, vision_config=_VISION_3),
}
"""Published sizes of models that may be named by a hub id whose files are not here yet."""


@dataclass(frozen=True)
class Shape:
    """What memory depends on, of a model."""

    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    is_tied: bool
    vision_parameters: float
    pixels_per_token: int
    max_tokens: int
    """Positions that the model takes."""

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of each linear of a layer."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (self.hidden, queries),
            "k_proj": (self.hidden, keys),
            "v_proj": (self.hidden, keys),
            "o_proj": (queries, self.hidden),
            "gate_proj": (self.hidden, self.mlp),
            "up_proj": (self.hidden, self.mlp),
            "down_proj": (self.mlp, self.hidden),
        }

    @property
    def language_parameters(self) -> float:
        """Weights of the language model, its embedding and its head."""
        layers = self.layers * (sum(a * b for a, b in self.linears.values()) + 2 * self.hidden)
        return float(layers + self.vocabulary * self.hidden * (1 if self.is_tied else 2))

    def adapter_parameters(self, rank: int, names: Sequence[str]) -> float:
        """Weights of a LoRA adapter on named linears."""
        return float(self.layers * sum(rank * sum(self.linears[name]) for name in names if name in self.linears))


def read_shape(path: str) -> Shape | None:
    """Read a model's shape from its ``config.json``, or from the table of known models.

    Args:
        path: A folder, an embedded checkpoint or a hub id, as in the settings.

    Returns:
        The shape; ``None`` for a hub id that is neither known nor here.

    Raises:
        ModelError: If a folder's ``config.json`` cannot be read or lacks a size.
    """
    file = Path(resolve_model_path(path)) / "config.json"
    if file.is_file():
        try:
            return shape_of(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
            raise ModelError(f"{file} does not say how large the model is: {type(error).__name__} {error}") from error
    name = path.lower().rsplit("/", maxsplit=1)[-1]
    found = next((known for known in sorted(KNOWN, key=len, reverse=True) if name.startswith(known)), None)
    return shape_of(KNOWN[found]) if found else None


def shape_of(config: Mapping[str, Any]) -> Shape:
    """Read a shape from the content of ``config.json``; text settings may be nested or at the top."""
    text = {**config, **config.get("text_config", {})}
    vision = {**_VISION, **config.get("vision_config", {})}
    width = vision.get("embed_dim") or vision["hidden_size"]
    of_mlp = vision.get("intermediate_size") or width * vision.get("mlp_ratio", 4)
    products = 3 if config.get("model_type") == "qwen2_5_vl" else 2
    merged = width * vision["spatial_merge_size"] ** 2
    out = text["hidden_size"]
    mergers = 1 + len(vision.get("deepstack_visual_indexes", ()))
    tower = vision["depth"] * (4 * width**2 + products * width * of_mlp) + mergers * (merged**2 + merged * out)
    heads = text["num_attention_heads"]
    return Shape(
        hidden=out,
        mlp=text["intermediate_size"],
        layers=text["num_hidden_layers"],
        heads=heads,
        kv_heads=text["num_key_value_heads"],
        head_dim=text.get("head_dim") or out // heads,
        vocabulary=text["vocab_size"],
        is_tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
        vision_parameters=float(tower),
        pixels_per_token=(vision["patch_size"] * vision["spatial_merge_size"]) ** 2,
        max_tokens=int(text.get("max_position_embeddings", 32_768)),
    )


@dataclass(frozen=True)
class Footprint:
    """Bytes on one GPU, by part."""

    weights: float
    trained: float
    """Gradients, optimiser states, copies in float32; an adapter's own weights."""
    least_activations: float
    """Of one prompt, with checkpointing."""
    usual_activations: float
    """Of the prompts of a process, as many as are good for speed, without checkpointing."""
    rollouts: float
    """Keys and values of all completions, or, under ZeRO-3, the whole model."""
    update: float
    """Gradients in float32, and flat, while DeepSpeed's optimiser steps."""
    beside: float = 0.0
    """Model services on the same GPU."""

    @property
    def least(self) -> float:
        """With everything that saves memory."""
        return self._always + max(self.least_activations, self.rollouts, self.update)

    @property
    def usual(self) -> float:
        """With everything that is good for speed."""
        return self._always + max(self.usual_activations, self.rollouts, self.update)

    @property
    def _always(self) -> float:
        return self.weights + self.trained + self.beside + CONTEXT


def estimate_footprint(
    config: GrpoConfig, shape: Shape, photos: int = 1, vision_cache_mib: int = 2048, beside: float = 0.0
) -> Footprint:
    """Estimate the memory of each GPU.

    Args:
        config: Of the training.
        shape: Of the model.
        photos: Photos of a prompt.
        vision_cache_mib: Memory for vision features.
        beside: Bytes of model services on the same GPU.
    """
    size = 4 if config.model.dtype == "float32" else 2
    spread = config.num_processes if config.distributed.strategy != "ddp" else 1
    total = shape.language_parameters + shape.vision_parameters
    weights = total * size / (spread if config.distributed.shards_weights else 1)
    if config.distributed.strategy == "zero3_offload":
        weights = 0.0  # they come from the machine's memory, layer by layer
    if config.distributed.shards_weights:
        weights += shape.vision_parameters * size  # every process keeps the vision tower whole
    visual = photos * -(-config.model.max_pixels // shape.pixels_per_token)
    tokens = visual + PROMPT_TEXT + config.num_generations * config.max_new_tokens
    share = config.prompts_per_step // config.num_processes
    is_short = config.model.engine == "shared_prefix" and config.lora.dropout == 0 and size == 2
    widths, of_mlp = (9.0, 3.0) if is_short else (12.0, 4.5)
    layer = (widths * shape.hidden + of_mlp * shape.mlp) * size
    prompts = max(1, min(config.micro_batch_prompts or share, share, (config.micro_batch_tokens or 16_384) // tokens))
    logits = LOGIT_ROWS * shape.vocabulary * 4 * 3 + vision_cache_mib * (1 << 20) * min(1.0, visual * share / 4096)
    cache = share * tokens * 2 * shape.layers * shape.kv_heads * shape.head_dim * size
    gathered = total * size if config.distributed.shards_weights and config.distributed.gather_for_rollouts else 0.0
    return Footprint(
        weights=weights,
        trained=_trained_bytes(config, shape, size, spread),
        least_activations=tokens * (shape.layers * 3 * shape.hidden * size + layer) + logits,
        usual_activations=prompts * tokens * shape.layers * layer + logits,
        rollouts=cache + gathered,
        update=_update_bytes(config, shape, size, spread),
        beside=beside,
    )


def service_bytes(ref: ModelRef, cache_mib: int = 2048) -> float:
    """Estimate the memory of a model service: weights, what it keeps of photos, a forward pass.

    A pass over 16,384 tokens of a 7B model took 2.2 GiB on an H100, of which this gives 2.6.

    Args:
        ref: What it serves; 0 bytes if its size is not known.
        cache_mib: Memory for vision features, and for keys and values.
    """
    shape = read_shape(ref.path)
    if shape is None:
        return 0.0
    size = 4 if ref.dtype == "float32" else 2
    weights = (shape.language_parameters + shape.vision_parameters) * size
    scoring = SERVICE_TOKENS * (3 * shape.mlp + 8 * shape.hidden) * size
    return weights + scoring + cache_mib * (1 << 20) + CONTEXT


def _trained_bytes(config: GrpoConfig, shape: Shape, size: int, spread: int) -> float:
    """What is kept for the weights that are trained."""
    strategy = config.distributed.strategy
    kept = size + (0 if strategy.endswith("offload") else 12)  # gradients; copies and AdamW's states in float32
    if not config.full_finetuning:
        adapter = shape.adapter_parameters(config.lora.r, config.lora.target_modules)
        if strategy == "ddp":
            return adapter * (4 + 4 + 8)  # weights, gradients and AdamW in float32
        return adapter * size + adapter * kept / spread
    trained = shape.language_parameters
    reference = (trained + shape.vision_parameters) * size if config.beta > 0 else 0.0
    if config.distributed.shards_weights:  # the reference is spread as the model is
        reference = 0.0 if strategy == "zero3_offload" else reference / spread
    if strategy == "ddp":
        return trained * 3 * size + reference
    return trained * kept / spread + reference


def _update_bytes(config: GrpoConfig, shape: Shape, size: int, spread: int) -> float:
    """What DeepSpeed's optimiser takes beside what is kept: a flat copy of its gradients, and one in float32."""
    strategy = config.distributed.strategy
    if strategy == "ddp" or strategy.endswith("offload") or not config.full_finetuning:
        return 0.0  # an adapter's are small
    at_once = shape.language_parameters / spread
    if config.distributed.shards_weights:
        at_once = min(at_once, SUB_GROUP)
    return at_once * (size + (4 if size == 2 else 0))


def tell(config: GrpoConfig, found: Footprint) -> str:
    """Say what is needed, in one line."""
    needs, fast = found.least / GIB, found.usual / GIB
    parts = {
        "weights": found.weights,
        "what is trained": found.trained,
        "rollouts": found.rollouts,
        "one prompt's activations": found.least_activations,
        **({"model services on the same GPU": found.beside} if found.beside else {}),
    }
    told = ", ".join(f"{name} {part / GIB:.1f}" for name, part in parts.items())
    return f"{config.model.path} needs about {needs:.0f} GiB a GPU ({told}), and {fast:.0f} GiB at full speed"


def check_memory(config: GrpoConfig, found: Footprint, gpus: Sequence[float]) -> str | None:
    """Compare the need with the GPUs.

    Args:
        config: Of the training.
        found: Bytes of each GPU.
        gpus: Total bytes of each GPU that training can have.

    Returns:
        What to warn of; ``None`` if everything fits.

    Raises:
        ConfigError: If it cannot fit, and the settings do not say that a warning is enough.
    """
    if not gpus:
        return None
    smallest = min(gpus)
    if found.least > smallest:
        message = f"{tell(config, found)}; the smallest has {smallest / GIB:.0f} GiB: {advice(config, found, smallest)}"
        if config.memory_check == "refuse":
            raise ConfigError(f"{message}. To try all the same, set training.memory_check = 'warn'")
        return message
    if found.usual > smallest:
        return f"{tell(config, found)}; the smallest has {smallest / GIB:.0f} GiB: activations will be computed again"
    return None


def advice(config: GrpoConfig, found: Footprint, smallest: float) -> str:
    """Say what would make it fit."""
    ways = []
    if found.beside and found.least - found.beside <= smallest:
        ways.append("one GPU more, which the listener then has for itself, or a listener elsewhere (run.services)")
    if found.weights > 0.8 * smallest and not config.distributed.shards_weights:
        machines = max(2, -(-int(found.weights) // int(0.4 * smallest)))
        ways.append(f"training.distributed.strategy = 'zero3' on {machines} GPUs or more")
    if config.full_finetuning:
        ways.append("an adapter instead of training.full_finetuning, or the strategy 'zero2_offload'")
    if found.least_activations > 0.2 * smallest:
        ways.append(
            f"fewer or shorter completions (training.num_generations = {config.num_generations}, max_new_tokens = "
            f"{config.max_new_tokens}) or smaller photos (model.max_pixels = {config.model.max_pixels})"
        )
    if found.rollouts > 0.2 * smallest:
        ways.append(f"fewer prompts a step on each GPU (training.prompts_per_step = {config.prompts_per_step})")
    return "use " + ", ".join([*ways, "a smaller model"])
