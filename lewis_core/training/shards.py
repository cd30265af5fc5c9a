"""A base's files with an adapter added or with trained weights, one tensor after the other: none need fit into memory.

Only plain LoRA of linear layers is added this way. Each weight is read, the adapter's product is added in float32, and
the sum is rounded once. Names of weights stay those of the base's files.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lewis_core.errors import ModelError
from lewis_core.models.adapters import SETTINGS, WEIGHTS

SHARD_BYTES = 2 << 30
"""Bytes of a file, about: as much is in memory."""
INDEX = "model.safetensors.index.json"
_WRAPPING = ("base_model", "model", "language_model")
"""Parts of a module's name that differ between a model's files and the model."""
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "lora_bias": (False,),
    "use_dora": (False,),
}
"""Settings that a plain adapter has, if it has them at all; others that change the sum must be empty."""
_EMPTY = ("modules_to_save", "rank_pattern", "alpha_pattern", "layer_replication", "target_parameters",
          "megatron_config", "alora_invocation_tokens", "trainable_token_indices")  # fmt: skip


@dataclass(frozen=True)
class Addition:
    """What an adapter adds to a weight (out, in): ``scale`` · ``b`` (out, rank) · ``a`` (rank, in)."""

    a: Tensor
    b: Tensor
    scale: float

    def to(self, weight: Tensor) -> Tensor:
        """Add it to a weight, shape (out, in); the sum is float32.

        Raises:
            ModelError: If the shapes do not fit.
        """
        if weight.shape != (self.b.shape[0], self.a.shape[1]):
            raise ModelError(
                f"the adapter adds {self.b.shape[0]} x {self.a.shape[1]} numbers to a weight of {tuple(weight.shape)}"
            )
        return torch.addmm(weight.float(), self.b.float(), self.a.float(), alpha=self.scale)


def read_plain_adapter(folder: Path) -> dict[str, Addition] | None:
    """Read an adapter.

    Args:
        folder: Of the adapter.

    Returns:
        What is added to which module, by its bare name (:func:`bare`); ``None`` if it is not plain LoRA.
    """
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    tensors = load_file(folder / WEIGHTS)
    is_plain = all(settings.get(name, fits[0]) in fits for name, fits in _PLAIN.items())
    ends = (".lora_A.weight", ".lora_B.weight")
    if not is_plain or any(settings.get(name) for name in _EMPTY) or not all(name.endswith(ends) for name in tensors):
        return None
    rank, alpha = settings["r"], settings["lora_alpha"]
    scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    names = {name.removesuffix(ends[0]) for name in tensors if name.endswith(ends[0])}
    if {name.removesuffix(ends[1]) for name in tensors if name.endswith(ends[1])} != names:
        raise ModelError(f"{folder / WEIGHTS} lacks one half of an adapter: expected lora_A and lora_B of each layer")
    return {bare(name): Addition(tensors[name + ends[0]], tensors[name + ends[1]], scale) for name in sorted(names)}


def bare(name: str) -> str:
    """A module's name without what wraps it.

    >>> bare("base_model.model.model.language_model.layers.0.mlp.up_proj")
    'layers.0.mlp.up_proj'
    >>> bare("model.layers.0.mlp.up_proj"), bare("visual.blocks.0.attn.qkv")
    ('layers.0.mlp.up_proj', 'visual.blocks.0.attn.qkv')
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPING)


def merge_files(base: Path, additions: Mapping[str, Addition], out: Path, dtype: torch.dtype) -> None:
    """Write a base's weights and settings with an adapter added.

    Args:
        base: Folder of the base.
        additions: From :func:`read_plain_adapter`.
        out: Folder to write to; made.
        dtype: Precision of the weights that are written.

    Raises:
        ModelError: If the adapter does not fit the base.
    """
    left, shards = set(additions), _Shards(out)
    for name, weight in _weights(base):
        module = bare(name.removesuffix(".weight"))
        if name.endswith(".weight") and module in additions:
            if module not in left:
                raise ModelError(f"{base} has two weights of {module}, to which the adapter adds something")
            left.discard(module)
            weight = additions[module].to(weight)  # noqa: PLW2901
        shards.add(name, weight.to(dtype) if weight.is_floating_point() else weight)
    if left:
        raise ModelError(
            f"{base} has no weights of {', '.join(sorted(left)[:3])}, to which the adapter adds something: "
            "is the adapter another model's?"
        )
    shards.close()
    _copy_settings(base, out, str(dtype).removeprefix("torch."))


def copy_weights(source: Path, base: Path, out: Path) -> None:
    """Write weights that were trained whole under the names of their base's files, which every program knows.

    transformers writes other names of a model that ZeRO-3 has spread, and DeepSpeed a head that is the embedding.

    Args:
        source: Folder of the trained weights.
        base: Folder of the base.
        out: Folder to write to; made.
    """
    names, shards = {bare(name): name for name, _ in _files(base)}, _Shards(out)
    settings = json.loads((base / "config.json").read_text(encoding="utf-8"))
    is_tied = {**settings.get("text_config", {}), **settings}.get("tie_word_embeddings", False)
    for name, weight in _weights(source):
        if not (is_tied and name == "lm_head.weight" and name not in names):
            shards.add(names.get(bare(name), name), weight)
    shards.close()


class _Shards:
    """Writes weights to files of limited size, and an index of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, Tensor] = {}
        self._files: dict[str, str] = {}
        self._count = self._total = self._size = 0
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, weight: Tensor) -> None:
        """Add a weight."""
        self._held[name] = weight.contiguous()
        self._size += weight.nbytes
        if self._size >= SHARD_BYTES:
            self._flush()

    def close(self) -> None:
        """Write what is left, and the index."""
        self._flush()
        index = {"metadata": {"total_size": self._total}, "weight_map": self._files}
        (self._folder / INDEX).write_text(json.dumps(index, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    def _flush(self) -> None:
        if not self._held:
            return
        self._count += 1
        file = f"model-{self._count:05d}.safetensors"
        save_file(self._held, self._folder / file, {"format": "pt"})
        self._files |= dict.fromkeys(self._held, file)
        self._total += self._size
        self._held, self._size = {}, 0


def _weights(base: Path) -> Iterator[tuple[str, Tensor]]:
    """All weights, in order of files and names; one at a time is in memory."""
    for key, path in _files(base):
        with safe_open(path, "pt") as file:
            yield key, file.get_tensor(key)


def _files(base: Path) -> Iterator[tuple[str, Path]]:
    """Names of all weights, and the files that they are in, in order of files and names."""
    index = base / INDEX
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        names = sorted(path.name for path in base.glob("*.safetensors"))
    for name in names:
        with safe_open(base / name, "pt") as file:
            for key in sorted(file.keys()):
                yield key, base / name


def _copy_settings(base: Path, out: Path, dtype: str) -> None:
    """Copy the settings of the model and of its generation; the precision is the new one."""
    text = (base / "config.json").read_text(encoding="utf-8")
    text = re.sub(r'("(?:torch_)?dtype"\s*:\s*)"\w+"', rf'\1"{dtype}"', text)
    (out / "config.json").write_text(text, encoding="utf-8")
    generation = base / "generation_config.json"
    if generation.is_file():
        (out / generation.name).write_bytes(generation.read_bytes())
