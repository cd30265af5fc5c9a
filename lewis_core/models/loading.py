"""Load a vision-language model and its processor: local folders, hub ids, embedded checkpoints, LoRA adapters.

Weights are safetensors only, and no code from a checkpoint is ever run.
"""

import json
import logging
import re
import warnings
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import SafetensorError, safe_open

from lewis_core.config.base import ModelRef, Runtime
from lewis_core.errors import ModelError
from lewis_core.models.attention import use_packed_images, use_shared_prefix
from lewis_core.models.compiling import compile_layers
from lewis_core.models.files import adapter_folder, resolve_model_path
from lewis_core.models.fusing import fuse
from lewis_core.models.fusing_vision import fuse_vision

logger = logging.getLogger(__name__)
SUPPORTED = {"qwen2_vl": "Qwen2-VL", "qwen2_5_vl": "Qwen2.5-VL", "qwen3_vl": "Qwen3-VL"}
"""Architectures that the shared-prefix engine supports: ``model_type`` of config.json → name."""
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
_LOADING_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, SafetensorError)


def resolve_device(runtime: Runtime) -> torch.device:
    """Choose the device.

    Raises:
        ModelError: If a GPU is asked for and there is none.
    """
    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise ModelError("device 'cuda' was asked for, but torch finds no GPU; set device to 'auto' or 'cpu'")
    return torch.device("cuda" if runtime.device != "cpu" and torch.cuda.is_available() else "cpu")


def free_bytes(device: torch.device) -> float:
    """Memory that is free on a device."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return float(psutil.virtual_memory().available)


def resolve_dtype(ref: ModelRef, device: torch.device) -> torch.dtype:
    """Precision of the weights: ``auto`` is bfloat16 on a GPU and float32 on a CPU."""
    if ref.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.float32 if ref.dtype == "float32" else torch.bfloat16


def load_model(ref: ModelRef, runtime: Runtime, *, trainable: bool = False) -> tuple[Any, Any]:
    """Load a model, in evaluation mode, with its adapter (unmerged) and its processor.

    With the shared-prefix engine, the language model attends to packed rows by
    :mod:`lewis_core.models.attention`, and otherwise as with ``sdpa`` (an ``eager`` one keeps dense masks), and its
    layers are shortened by :mod:`lewis_core.models.fusing` and :mod:`lewis_core.models.fusing_vision`; on a GPU its
    vision tower takes many images in one call.

    Also sets torch's thread count (``runtime.torch_threads``), turns cuDNN attention off (it builds a plan for every
    new shape), and silences the progress bars and notes of transformers.

    Args:
        ref: What to load.
        runtime: Where to.
        trainable: Keep the adapter's weights trainable and in float32, to train it further.

    Returns:
        Model and processor; the processor pads on the left and, for Qwen-VL models, resizes to ``ref``'s pixel limits.

    Raises:
        ModelError: If anything is missing, damaged, of an unsupported architecture, or does not fit together.
    """
    _quieten()
    if runtime.torch_threads:
        torch.set_num_threads(runtime.torch_threads)
    device = resolve_device(runtime)
    path = _locate(ref)
    _check_architecture(path, ref)
    processor = _load_processor(path, ref)
    model = _load_weights(path, ref, resolve_dtype(ref, device))
    if adapter := adapter_folder(ref):
        model = _load_adapter(model, adapter, trainable)
    model = model.to(device).eval()
    if ref.engine == "shared_prefix":
        use_engine(model, attention=ref.attention, compiled=runtime.compile_layers)
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)
    return model, processor


def use_engine(model: Any, *, attention: str = "sdpa", compiled: bool = False) -> None:
    """Let a model on its device compute as the shared-prefix engine wants it.

    Args:
        model: A Qwen-VL model of transformers, or its PEFT wrapper.
        attention: As in :class:`~lewis_core.config.base.ModelRef`.
        compiled: Compile norms and MLPs.
    """
    if attention != "eager":
        use_shared_prefix(model)
    if compiled:
        compile_layers(model)
    fuse(model)
    fuse_vision(model)
    if model.device.type == "cuda" and attention == "sdpa":
        use_packed_images(model)


def load_processor(ref: ModelRef) -> Any:
    """Load the processor alone.

    Raises:
        ModelError: If it is missing, damaged or of an unsupported architecture.
    """
    _quieten()
    path = _locate(ref)
    _check_architecture(path, ref)
    return _load_processor(path, ref)


def _quieten() -> None:
    from transformers.utils import logging as transformers_logging

    quiet: Any = transformers_logging
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()


def _locate(ref: ModelRef) -> str:
    """Check what can be checked before anything is loaded; returns a complete folder, or a hub id."""
    path = resolve_model_path(ref.path)
    if Path(path).is_dir():
        _check_folder(Path(path))
        return path
    if not _HUB_ID.fullmatch(path):
        raise ModelError(f"there is no model folder {path}")
    return path


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is not a checkpoint: it has no config.json")
    if not any(folder.glob("*.safetensors")):
        other = [p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern)]
        hint = f"; {other[0]} is not read, because pickled weights can run code: convert them" if other else ""
        raise ModelError(f"{folder} has no weights: expected *.safetensors{hint}")
    for names, what in (
        (("preprocessor_config.json", "processor_config.json"), "image processor"),
        (("tokenizer.json", "vocab.json", "tokenizer_config.json"), "tokenizer"),
    ):
        if not any((folder / name).is_file() for name in names):
            raise ModelError(f"{folder} has no {what}: expected {' or '.join(names)}")


def _check_architecture(path: str, ref: ModelRef) -> None:
    config = _read_config(path, ref.revision)
    model_type = config.get("model_type")
    if model_type not in SUPPORTED and ref.engine != "plain":
        known = ", ".join(f"{name} ({key})" for key, name in SUPPORTED.items())
        raise ModelError(
            f"{ref.path} is of the architecture {model_type!r}; supported are {known}. With the setting engine = "
            "'plain', which is slow, transformers' other image-text-to-text models run too"
        )


def _read_config(path: str, revision: str | None) -> dict[str, Any]:
    from transformers.utils.hub import cached_file

    try:
        file: Any = cached_file(path, "config.json", revision=revision)
        content: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, TypeError) as error:
        raise ModelError(
            f"{path!r} is neither a folder here nor a model that can be fetched from the hub "
            f"({str(error).splitlines()[0]}). Without a connection, download the model elsewhere and give its folder."
        ) from error
    except ValueError as error:
        raise ModelError(f"{path}: config.json is not valid JSON: {error}") from error
    return content


def _load_processor(path: str, ref: ModelRef) -> Any:
    from transformers import AutoProcessor

    loader: Any = AutoProcessor
    try:
        processor = loader.from_pretrained(path, revision=ref.revision, trust_remote_code=False)
    except _LOADING_ERRORS as error:
        raise ModelError(f"the processor of {ref.path} cannot be loaded: {error}") from error
    if not getattr(processor, "chat_template", None):
        raise ModelError(f"the processor of {ref.path} has no chat template: expected chat_template.jinja")
    images, tokenizer = processor.image_processor, processor.tokenizer
    if getattr(images, "merge_size", None):  # others give their sizes another meaning
        images.size = type(images.size)(shortest_edge=ref.min_pixels, longest_edge=ref.max_pixels)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return processor


def _load_weights(path: str, ref: ModelRef, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForImageTextToText

    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            path,
            revision=ref.revision,
            dtype=dtype,
            attn_implementation=ref.attention,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except _LOADING_ERRORS as error:
        raise ModelError(f"the weights of {ref.path} cannot be loaded: {error}") from error
    model, info = loaded
    if wrong := sorted(map(str, (*info["missing_keys"], *info["mismatched_keys"]))):
        raise ModelError(
            f"the weights of {ref.path} do not fit its config.json: {len(wrong)} tensors are missing or have another "
            f"shape, e.g. {wrong[0]}"
        )
    return model


def _load_adapter(model: Any, folder: Path, trainable: bool) -> Any:
    from peft import PeftModel, get_peft_model_state_dict

    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise ModelError(f"{folder} is not a LoRA adapter: it has no {name}")
    try:
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
            stored = set(file.keys())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what peft warns of is an error below
            model = PeftModel.from_pretrained(
                model, str(folder), is_trainable=trainable, autocast_adapter_dtype=trainable
            )
    except _LOADING_ERRORS as error:
        raise ModelError(f"the adapter {folder} does not fit the base model: {error}") from error
    if odd := sorted(stored ^ set(get_peft_model_state_dict(model))):
        raise ModelError(
            f"the adapter {folder} does not fit the base model: {len(odd)} of its tensors have no place there or are "
            f"missing, e.g. {odd[0]}"
        )
    return model
