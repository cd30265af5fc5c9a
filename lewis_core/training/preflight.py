"""What is checked before a training loads anything: memory, data, prompts, adapter. Each refusal says what to do.

Runs as a stage of its own before a listener is started (``check-training``), and again where training begins.
"""

import importlib.util
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.version import Version
from safetensors import safe_open

from lewis_core.artifacts import ArtifactRef
from lewis_core.config.base import ModelRef, Runtime
from lewis_core.config.grpo import GrpoConfig, LoraSettings
from lewis_core.config.listener_training import TrainListenerConfig
from lewis_core.config.training import TrainSpeakerConfig
from lewis_core.errors import ConfigError, DataError, ModelError
from lewis_core.listener.schemas import MAX_CANDIDATES
from lewis_core.models.adapters import SETTINGS, WEIGHTS, foreign_base
from lewis_core.models.files import adapter_folder
from lewis_core.records import JsonObject
from lewis_core.training.footprint import (
    GIB,
    Footprint,
    Shape,
    check_memory,
    estimate_footprint,
    read_shape,
    service_bytes,
    tell,
)
from lewis_core.training.groups import photos_of
from lewis_core.training.rows import load_rows

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)
MAX_TEXTS = 2000
"""Different prompts that are tokenized; prompts of a data set differ in their category word mostly."""
SHOWN = 3
COLUMNS = ("prompt",)
LINEARS: tuple[str, ...] = LoraSettings.model_fields["target_modules"].default
"""Names of the language models' linear layers, in all supported families."""
MUCH = 16
"""Scale of an adapter, alpha / r, above which it is hardly meant."""
LEAST_DEEPSPEED = Version("0.19.2")


def preflight_speaker(
    dataset: ArtifactRef, output_dir: Path, config: TrainSpeakerConfig, beside: Sequence[ModelRef], runtime: Runtime
) -> JsonObject:
    """Check a speaker's training (stage ``check-training``); see :func:`check_training`."""
    return _preflight(dataset, output_dir, config, runtime, beside)


def preflight_listener(
    dataset: ArtifactRef, output_dir: Path, config: TrainListenerConfig, runtime: Runtime
) -> JsonObject:
    """Check a listener's training (stage ``check-listener-training``); see :func:`check_training`."""
    return _preflight(dataset, output_dir, config, runtime)


def _preflight(
    dataset: ArtifactRef, output_dir: Path, config: GrpoConfig, runtime: Runtime, beside: Sequence[ModelRef] = ()
) -> JsonObject:
    rows = load_rows(dataset.path / "dataset", config, COLUMNS)
    found = check_training(config, rows, runtime, beside)
    (output_dir / "preflight.txt").write_text(f"{found['memory']}\n", encoding="utf-8")
    return found


def check_training(
    config: GrpoConfig, rows: "Dataset", runtime: Runtime, beside: Sequence[ModelRef] = ()
) -> JsonObject:
    """Check everything that can be checked without loading a model.

    Args:
        config: Of the training.
        rows: Its data set.
        runtime: Device.
        beside: Models whose services will be on a GPU of the training.

    Returns:
        The memory estimate, the longest prompt in tokens, and the number of different prompts.

    Raises:
        ConfigError: If memory does not suffice, a package or a layer is missing, the adapter is larger than its layers,
            nothing is rewarded, or a prompt is longer than the model takes.
        DataError: If rows lack candidates, or name a target that is none of them.
        ModelError: If the adapter is missing, not whole, or belongs to another model.
    """
    check_packages(config)
    check_attention(config, runtime)
    check_precision(config, runtime)
    shape = read_shape(config.model.path)
    check_layers(config, shape)
    check_adapter_of(config)
    check_rewards_of(config)
    check_candidates(rows)
    for warning in foolish(config, config.steps(len(rows))):
        logger.warning(warning)
    photos = max(len(photos_of(row)) for row in rows.select(range(1)))
    memory = _tell_memory(config, shape, photos, runtime, beside)
    longest, texts = longest_prompt(config, rows, shape)
    return {"memory": memory, "longest_prompt_tokens": longest, "different_prompts": texts}


def _tell_memory(
    config: GrpoConfig, shape: Shape | None, photos: int, runtime: Runtime, beside: Sequence[ModelRef]
) -> str:
    if shape is None:
        told = (
            f"the size of {config.model.path} is not known before it is downloaded, so memory cannot be estimated; "
            "give a local folder to have it checked"
        )
        logger.warning(told)
        return told
    cache_mib = runtime.vision_cache_mib + (runtime.prompt_cache_mib or 0)  # unasked, services beside it keep no keys
    services = sum(service_bytes(ref, cache_mib) for ref in beside)
    found: Footprint = estimate_footprint(config, shape, photos, runtime.vision_cache_mib, services)
    gpus = gpu_bytes() if runtime.device != "cpu" else []
    here = f"{len(gpus)} GPU{'s' * (len(gpus) > 1)} of {min(gpus) / GIB:.0f} GiB here" if gpus else "no GPU here"
    told = f"{tell(config, found)}; {here}"
    logger.info(told)
    if warning := check_memory(config, found, gpus):
        logger.warning(warning)
    return told


def gpu_bytes() -> list[float]:
    """Memory of each GPU that this process may use."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [float(torch.cuda.get_device_properties(number).total_memory) for number in range(count)]


def check_packages(config: GrpoConfig) -> None:
    """Check that what the strategy needs is installed.

    Raises:
        ConfigError: If DeepSpeed is missing or too old.
    """
    if config.distributed.strategy != "ddp" and importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(
            f"training.distributed.strategy = {config.distributed.strategy!r} needs DeepSpeed, which is not installed: "
            "pip install 'lewis[gpu]', or set the strategy to 'ddp'"
        )
    if config.distributed.strategy != "ddp" and Version(found := version("deepspeed")) < LEAST_DEEPSPEED:
        raise ConfigError(
            f"training.distributed.strategy = {config.distributed.strategy!r} needs DeepSpeed {LEAST_DEEPSPEED} or "
            f"newer, found {found}, which rounds the model's frequencies of positions to bfloat16: pip install "
            "--upgrade 'lewis[gpu]', or set the strategy to 'ddp'"
        )


def check_precision(config: GrpoConfig, runtime: Runtime) -> None:
    """Check that small updates are not lost.

    Raises:
        ConfigError: If a whole model is trained in bfloat16 without copies in float32.
    """
    is_short = config.model.dtype == "bfloat16" or (config.model.dtype == "auto" and runtime.device != "cpu")
    if config.full_finetuning and config.distributed.strategy == "ddp" and is_short and gpu_bytes():
        raise ConfigError(
            "training.full_finetuning in bfloat16 loses most updates (they are smaller than its rounding); set "
            "training.distributed.strategy to 'zero2', which keeps copies in float32, or training.model.dtype to "
            "'float32'"
        )


def check_attention(config: GrpoConfig, runtime: Runtime) -> None:
    """Check that the attention implementation can be used.

    Raises:
        ConfigError: If it is flash attention, and there is no GPU or no package for it.
    """
    if config.model.attention != "flash_attention_2":
        return
    is_there = any(importlib.util.find_spec(name) for name in ("flash_attn", "kernels"))
    if not is_there or runtime.device == "cpu" or not gpu_bytes():
        raise ConfigError(
            "training.model.attention = 'flash_attention_2' needs "
            + ("a GPU" if is_there else "the package flash-attn, which is not installed")
            + "; set it to 'sdpa', which is as fast here: packed rows have PyTorch's own flash attention"
        )


def check_layers(config: GrpoConfig, shape: Shape | None) -> None:
    """Check that the language model has the layers that are to be adapted, and that they are larger than the adapter.

    Args:
        config: Of the training.
        shape: Of the model; ``None``: the rank is not checked.

    Raises:
        ConfigError: If it has no such layers, or is narrower than the rank.
    """
    if config.full_finetuning or config.model.adapter is not None:
        return
    if shape is not None and config.lora.r > shape.hidden:
        raise ConfigError(
            f"training.lora.r is {config.lora.r}, but {config.model.path} is {shape.hidden} wide: an adapter of that "
            f"rank has more weights than the layers; set it to {shape.hidden} at most (16 to 128 are usual), or set "
            "training.full_finetuning"
        )
    unknown = sorted(set(config.lora.target_modules) - set(LINEARS))
    if unknown and config.model.engine != "plain":
        raise ConfigError(
            f"training.lora.target_modules: the language model has no layers named {', '.join(unknown)}; it has "
            f"{', '.join(LINEARS)}"
        )


def check_rewards_of(config: GrpoConfig) -> None:
    """Check that anything is rewarded.

    Raises:
        ConfigError: If all weights are 0.
    """
    from lewis_core.rewards.answers import build_answer_rewards
    from lewis_core.rewards.trl import check_rewards

    if isinstance(config, TrainSpeakerConfig):
        check_rewards(config.rewards)
    elif isinstance(config, TrainListenerConfig):
        build_answer_rewards(config.rewards)


def foolish(config: GrpoConfig, steps: int) -> Iterator[str]:
    """Say what works and is hardly meant.

    Args:
        config: Of the training.
        steps: Its optimiser updates.
    """
    if config.warmup_steps > steps:
        yield (
            f"training.warmup_steps = {config.warmup_steps}, but there are {steps} steps: the learning rate never "
            f"reaches {config.learning_rate:g}"
        )
    if not config.full_finetuning and (scale := config.lora.alpha / config.lora.r) > MUCH:
        yield (
            f"training.lora.alpha = {config.lora.alpha} multiplies the update by {scale:g}; usual is twice "
            f"training.lora.r, {2 * config.lora.r}"
        )
    if config.importance_sampling_level == "sequence" and config.loss_type not in ("grpo", "luspo"):
        yield (
            f"training.importance_sampling_level = 'sequence' with the loss {config.loss_type!r} weights completions "
            "by their lengths; GSPO is loss_type = 'grpo'"
        )
    if isinstance(config, TrainSpeakerConfig) and config.held_out_listener == config.listener:
        yield (
            "training.held_out_listener is the training listener itself: held_out/gap cannot show a private code; name "
            "a model of another family, or unset it"
        )


def check_adapter_of(config: GrpoConfig) -> None:
    """Check the adapter that is continued.

    Raises:
        ConfigError: If its rank, scale or dropout are not those of the settings, which would name what comes out.
        ModelError: If it is missing, not whole, adapts the vision tower, or belongs to another model.
    """
    folder = adapter_folder(config.model)
    if folder is None:
        return
    if not folder.is_dir():
        raise ModelError(f"training.model.adapter: there is no folder {folder}; train it first, or unset the setting")
    if reason := foreign_base(folder, config.model):
        raise ModelError(
            f"training.model.adapter: {folder} cannot be continued: {reason}. Set training.model.path to the "
            "model that it was trained on, or unset the adapter"
        )
    with safe_open(folder / WEIGHTS, framework="numpy") as file:
        vision = next((name for name in file.keys() if "visual." in name), None)  # noqa: SIM118 # no mapping
    if vision is not None:
        raise ModelError(
            f"training.model.adapter: {folder} adapts the vision tower too ({vision}), which is never trained here: "
            "merge it into its base (python -m lewis_core.training.export), and train a new adapter of that"
        )
    has = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    found = LoraSettings(r=has["r"], alpha=has["lora_alpha"], dropout=has.get("lora_dropout") or 0.0)
    names = [name for name in ("r", "alpha", "dropout") if getattr(found, name) != getattr(config.lora, name)]
    if names:
        is_so, wanted = (
            ", ".join(f"{name} = {getattr(one, name):g}" for name in names) for one in (found, config.lora)
        )
        raise ConfigError(
            f"training.model.adapter: {folder} has {is_so}, which it keeps, and training.lora says {wanted}: write "
            "there what the adapter has"
        )


def check_candidates(rows: "Dataset") -> None:
    """Check that every game has candidates, and its target among them.

    Raises:
        DataError: If not.
    """
    if "candidates" not in rows.column_names:
        return
    pairs = list(zip(rows["candidates"], rows["target_index"], strict=True))
    counts = Counter(len(candidates or ()) for candidates, _ in pairs)
    if few := sum(count for width, count in counts.items() if width < 2):
        raise DataError(
            f"{few} of {len(pairs)} rows of the data set have fewer than 2 candidates, so there is nothing to find; "
            "build the games again with games.num_candidates = 2 or more"
        )
    if (widest := max(counts)) > MAX_CANDIDATES:
        raise DataError(
            f"{counts[widest]} rows have {widest} candidates, a listener takes {MAX_CANDIDATES} at most; "
            "build the games again with a lower games.num_candidates"
        )
    wrong = [number for number, (candidates, target) in enumerate(pairs) if not 0 <= target < len(candidates)]
    if wrong:
        raise DataError(
            f"{len(wrong)} rows of the data set name a target that is none of their candidates, e.g. row {wrong[0]}; "
            "build it again"
        )


def longest_prompt(config: GrpoConfig, rows: "Dataset", shape: Shape | None) -> tuple[int, int]:
    """Count the tokens of the longest prompt, with photos at their largest.

    Args:
        config: Of the training.
        rows: Its data set.
        shape: Of the model; ``None``: the model's own limit is not checked.

    Returns:
        Tokens of the longest prompt, and the number of different texts.

    Raises:
        ConfigError: If a prompt with its completion is longer than the model takes, or than the settings allow.
    """
    from lewis_core.models.loading import load_processor

    processor = load_processor(config.model)
    texts = list(dict.fromkeys(_text_of(row["prompt"]) for row in rows.select_columns("prompt")))[:MAX_TEXTS]
    template = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": "."}]}], add_generation_prompt=True, tokenize=False
    )
    frame = len(processor.tokenizer.encode(template, add_special_tokens=False))
    encoded = processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
    side = getattr(processor.image_processor, "patch_size", 14) * getattr(processor.image_processor, "merge_size", 2)
    visual = -(-config.model.max_pixels // side**2)
    photos = max(len(photos_of(row)) for row in rows.select(range(min(len(rows), MAX_TEXTS))))
    text = frame + max(map(len, encoded))
    longest = text + photos * (visual + 2)
    what = f"{photos} photo{'s' if photos > 1 else ''} of up to {visual} tokens and {text} of text"
    limit = config.max_prompt_tokens
    if limit is not None and longest > limit:
        raise ConfigError(
            f"the longest prompt has {longest} tokens ({what}), training.max_prompt_tokens allows {limit}; nothing is "
            f"truncated, since a photo whose tokens are cut off is no photo: raise it to {longest}, or lower "
            f"training.model.max_pixels to {max(784, (limit - text - 2) // photos * side**2)}"
        )
    most = shape.max_tokens if shape is not None else None
    if most is not None and longest + config.max_new_tokens > most:
        raise ConfigError(
            f"the longest prompt has {longest} tokens ({what}) and a completion up to {config.max_new_tokens}, but "
            f"{config.model.path} takes {most} positions; lower training.model.max_pixels or training.max_new_tokens"
        )
    return longest, len(texts)


def _text_of(messages: Any) -> str:
    texts: list[str] = []
    for message in messages:
        content = message["content"]
        texts += [content] if isinstance(content, str) else [part.get("text") or "" for part in content]
    return "\n".join(texts)
