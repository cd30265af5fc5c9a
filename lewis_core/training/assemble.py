"""Put a GRPO trainer together: adapter, memory plan, TRL's arguments, features of photos."""

import dataclasses
import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lewis_core.config.base import Runtime
from lewis_core.config.grpo import GrpoConfig, LoraSettings, split_problem
from lewis_core.errors import ConfigError, ModelError
from lewis_core.models.files import base_folder
from lewis_core.models.images import ImageSource
from lewis_core.training.processes import as_main, shards_weights

if TYPE_CHECKING:
    from datasets import Dataset

    from lewis_core.training.memory import Plan
    from lewis_core.training.trainer import SpeakerTrainer

logger = logging.getLogger(__name__)
PLAN = "plan.json"
"""File in the work folder that says how the step was split."""


def check_batches(config: GrpoConfig) -> int:
    """Split a step's prompts over the processes that there are.

    Returns:
        Prompts of a step in each process.

    Raises:
        ConfigError: If the numbers do not divide.
    """
    processes = int(os.environ.get("WORLD_SIZE", config.num_processes))
    if problem := split_problem(config.prompts_per_step, config.micro_batch_prompts, processes):
        raise ConfigError(f"training.{problem}")
    return config.prompts_per_step // processes


def assemble_trainer(
    model: Any,
    processor: Any,
    rows: "Dataset",
    photos: ImageSource,
    rewards: Sequence[Any],
    weights: list[float],
    work_dir: Path,
    config: GrpoConfig,
    runtime: Runtime,
) -> "SpeakerTrainer":
    """Put a trainer together from parts that are loaded.

    Args:
        model: The speaker; an adapter is added unless it has one.
        processor: Its processor.
        rows: Training rows; ``query`` is text.
        photos: Where queries lead.
        rewards: TRL's reward functions.
        weights: Weight of each reward.
        work_dir: Holds the plan and checkpoints.
        config: All settings of training.
        runtime: Threads, memory for vision features.
    """
    from lewis_core.models.features import backbone
    from lewis_core.training.joining import JoinGradients
    from lewis_core.training.processes import is_alone
    from lewis_core.training.sharding import share_precision, whole_vision_tower
    from lewis_core.training.shared_prefix import SharedPrefixTrainer
    from lewis_core.training.trainer import SpeakerTrainer

    chosen = _plan(model, config, work_dir)
    arguments = {
        "load": photos.load,
        "may_checkpoint": config.gradient_checkpointing == "auto" and not chosen.checkpointing and is_alone(),
        "model": model,
        "reward_funcs": list(rewards),
        "args": training_arguments(
            config, chosen, weights, work_dir / "checkpoints", model.device.type, config.steps(len(rows))
        ),
        "train_dataset": rows,
        "processing_class": processor,
        "peft_config": None if has_no_new_adapter(config) else adapter_config(model, config.lora),
    }
    if config.full_finetuning:
        backbone(model).visual.requires_grad_(False)
        model.config._name_or_path = str(base_folder(config.model))  # TRL would read the newest revision's reference
    if config.model.engine == "plain":
        trainer = SpeakerTrainer(**arguments)
    else:
        encode = _image_encoder(whole_vision_tower(model), processor, photos, runtime)
        trainer = SharedPrefixTrainer(encode=encode, own_rollouts=writes_itself(config), **arguments)
    if shards_weights():
        share_precision(trainer.model)
    if config.distributed.strategy == "zero2":
        trainer.add_callback(JoinGradients())
    if trainer.accelerator.ddp_handler is not None:  # gradients are not copied to be exchanged
        trainer.accelerator.ddp_handler.gradient_as_bucket_view = True
    return trainer


def has_no_new_adapter(config: GrpoConfig) -> bool:
    """Whether no adapter is to be made: one is continued, or the whole model is trained."""
    return config.full_finetuning or config.model.adapter is not None


def writes_itself(config: GrpoConfig) -> bool:
    """Whether rollouts are our own; says so when they are not.

    Raises:
        ConfigError: If our own are asked for, and no process holds the whole model.
    """
    if config.rollouts == "trl":
        logger.warning("rollouts are TRL's own, without shared prompts, because of training.rollouts = 'trl'")
        return False
    if not shards_weights():
        return True
    if config.rollouts == "shared_prefix":
        raise ConfigError(
            "training.rollouts = 'shared_prefix' needs the whole model in every process, and ZeRO-3 spreads it; set "
            "rollouts to 'auto', or training.distributed.strategy to 'zero2' or 'ddp'"
        )
    logger.warning(
        "rollouts are TRL's own, without shared prompts and CUDA graphs, because DeepSpeed ZeRO-3 spreads the weights "
        "over processes; if the model fits one GPU, training.distributed.strategy 'zero2' or 'ddp' is several times "
        "faster"
    )
    return False


def _plan(model: Any, config: GrpoConfig, work_dir: Path) -> "Plan":
    """Decide on micro-batches and checkpointing; a run that goes on keeps its first decision."""
    from lewis_core.training import memory

    share, file = check_batches(config), work_dir / PLAN

    def read() -> "Plan | None":
        return memory.Plan(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None

    kept = as_main(read)
    if kept is not None and share % kept.prompts == 0:
        return kept
    found = memory.estimate(model, config)
    chosen = memory.agree(memory.plan(found, config, share), model.device)
    logger.info(memory.report(found, chosen))
    if int(os.environ.get("RANK", "0")) == 0:
        work_dir.mkdir(parents=True, exist_ok=True)
        file.with_suffix(".tmp").write_text(json.dumps(dataclasses.asdict(chosen)), encoding="utf-8")
        file.with_suffix(".tmp").replace(file)
    return chosen


def training_arguments(
    config: GrpoConfig, plan: "Plan", weights: list[float], folder: Path, device: str, steps: int | None = None
) -> Any:
    """Translate the settings into TRL's."""
    from trl.trainer.grpo_config import GRPOConfig

    from lewis_core.training.processes import uses_deepspeed

    return GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=plan.prompts * config.num_generations,
        gradient_accumulation_steps=check_batches(config) // plan.prompts,
        num_generations=config.num_generations,
        max_steps=steps or config.max_steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler,
        warmup_steps=config.warmup_steps,
        max_grad_norm=config.max_grad_norm,
        beta=config.beta,
        temperature=config.temperature,
        max_completion_length=config.max_new_tokens,
        loss_type=config.loss_type,
        importance_sampling_level=config.importance_sampling_level,
        epsilon=config.epsilon,
        epsilon_high=config.epsilon_high,
        num_iterations=config.num_iterations,
        mask_truncated_completions=config.mask_truncated_completions,
        weight_decay=config.weight_decay,
        adam_beta1=config.adam_betas[0],
        adam_beta2=config.adam_betas[1],
        scale_rewards=config.scale_rewards,
        reward_weights=weights,
        activation_checkpointing=plan.checkpointing,
        seed=config.seed,
        use_cpu=device == "cpu" and not uses_deepspeed(),
        bf16=device == "cuda" and config.model.dtype != "float32",
        fp16=False,
        save_strategy="steps",
        save_steps=-(-config.save_steps // config.num_iterations) * config.num_iterations,  # between generations
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,  # nothing writes to them, and to send them would look like it (WeightsDigest)
        ddp_timeout=config.distributed.timeout_s,
        ds3_gather_for_generation=config.distributed.gather_for_rollouts,
        remove_unused_columns=False,
    )


def adapter_config(model: Any, settings: LoraSettings) -> Any:
    """Adapt the language model's named linear layers; the vision tower stays as it is.

    Raises:
        ModelError: If the language model has no such layers.
    """
    from peft import LoraConfig

    names = "|".join(map(re.escape, settings.target_modules))
    layers = {name.rpartition(".")[2] for name, _ in model.named_modules() if "language_model." in name}
    if unknown := sorted(set(settings.target_modules) - layers):
        raise ModelError(
            f"the language model has no layers named {', '.join(unknown)}; set training.lora.target_modules"
        )
    return LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        task_type="CAUSAL_LM",
        target_modules=rf".*language_model.*\.({names})",
    )


def _image_encoder(model: Any, processor: Any, images: ImageSource, runtime: Runtime) -> Any:
    """A function from image references to features that autograd accepts."""
    from lewis_core.models.features import ImageFeatures, VisionEncoder

    cache_bytes = runtime.vision_cache_mib << 20
    encoder = VisionEncoder(model, processor.image_processor, images, cache_bytes, runtime.num_workers)

    def encode(references: Sequence[str]) -> dict[str, ImageFeatures]:
        digests = {reference: images.digest(reference) for reference in references}
        found = encoder({digest: reference for reference, digest in digests.items()})
        normal = {
            digest: dataclasses.replace(  # copies made here can take part in a graph, the encoder's own can not
                features, tokens=features.tokens.clone(), deepstack=tuple(layer.clone() for layer in features.deepstack)
            )
            for digest, features in found.items()
        }
        return {reference: normal[digest] for reference, digest in digests.items()}

    return encode
