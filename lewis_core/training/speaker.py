"""Train a speaker by GRPO: descriptions that a frozen listener understands are made likelier.

Training goes on where it was stopped: checkpoints lie in the work folder, and the newest complete one is used.
Started by ``accelerate launch`` for several GPUs, or called in one process.
"""

import dataclasses
import json
import logging
import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lewis_core.artifacts import ArtifactRef
from lewis_core.config.base import Runtime
from lewis_core.config.training import LoraSettings, TrainSpeakerConfig
from lewis_core.errors import ConfigError, DataError, ModelError
from lewis_core.models.images import ImageSource
from lewis_core.models.protocol import AnsweringModel
from lewis_core.records import JsonObject
from lewis_core.reporting import Reporter
from lewis_core.rewards.trl import OUTAGES, build_rewards

if TYPE_CHECKING:
    from datasets import Dataset

    from lewis_core.training.memory import Plan
    from lewis_core.training.trainer import SpeakerTrainer

logger = logging.getLogger(__name__)
COLUMNS = ("prompt", "query", "candidates", "target_index", "category_word")
EXIT_STOPPED = 143
"""Exit status after SIGTERM (128 + 15), once a checkpoint is saved."""
RENAMED = ".*gradient_checkpointing(_enable|_disable)?. is deprecated"
"""What transformers 5.23 says of names that TRL 1.16 still uses."""
PLAN = "plan.json"
"""File in the work folder that says how the step was split."""
ENDS = 5
"""Steps at either end of training whose means the summary compares."""


def train_speaker(
    dataset: ArtifactRef,
    output_dir: Path,
    work_dir: Path,
    config: TrainSpeakerConfig,
    data_root: Path,
    service_url: str | None,
    runtime: Runtime,
    reporter: Reporter,
) -> JsonObject:
    """Train a LoRA adapter (stage ``train-speaker``).

    Args:
        dataset: Artifact with ``dataset/``: rows of prompt, query, candidates, target index, category word.
        output_dir: Receives ``adapter/``, ``metrics.jsonl``, ``completions.jsonl``, ``summary.json``.
        work_dir: Holds checkpoints while training runs.
        config: Model, rewards, optimisation.
        data_root: Folder that image paths are relative to.
        service_url: Address of the listener's service; ``None`` only if the listener's reward has weight 0.
        runtime: Device, threads.
        reporter: Receives metrics, sample completions, progress.

    Returns:
        Steps, completions, and the mean reward and listener accuracy of the first and last steps.

    Raises:
        ConfigError: If batch sizes do not fit together, or there is no listener.
        DataError: If the data set lacks rows or columns.
        ModelError: If the speaker cannot be loaded or adapted.
        ListenerUnavailableError: If the listener is lost; the last step is saved before.
        TrainingError: If the listener cannot judge too many completions.
        SystemExit: With status 143, after SIGTERM and a saved checkpoint.
    """
    check_batches(config)
    rows = load_rows(dataset.path / "dataset", config)
    listener = None
    if config.rewards.listener.weight > 0 and service_url:
        from lewis_core.listener.client import HttpModel

        listener = HttpModel(service_url)
    return train_on_rows(rows, listener, output_dir, work_dir, config, data_root, runtime, reporter)


def train_on_rows(
    rows: "Dataset",
    listener: AnsweringModel | None,
    output_dir: Path,
    work_dir: Path,
    config: TrainSpeakerConfig,
    data_root: Path,
    runtime: Runtime,
    reporter: Reporter,
) -> JsonObject:
    """Train on rows that are in memory, with any listener; else as :func:`train_speaker`."""
    from lewis_core.training.callbacks import ReportCallback, StopOnSignal

    build_rewards(config.rewards, listener)
    checkpoint = newest_checkpoint(work_dir / "checkpoints")
    reporter.log_params(config.model_dump(mode="json"))
    with StopOnSignal() as stop, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=RENAMED, category=FutureWarning)
        trainer = build_trainer(rows, listener, work_dir, config, data_root, runtime)
        trainer.add_callback(ReportCallback(trainer, reporter, work_dir, config.sample_steps))
        trainer.add_callback(stop)
        if checkpoint:
            logger.info("training goes on from %s", checkpoint.name)
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except OUTAGES:
            trainer.save_last_step()
            logger.error("the listener is gone; the speaker is saved after step %d", trainer.state.global_step)
            raise
    if stop.stopped:
        logger.warning("stopped by a signal; the speaker is saved after step %d", trainer.state.global_step)
        raise SystemExit(EXIT_STOPPED)
    return _write_results(trainer, rows, config, output_dir, work_dir)


def check_batches(config: TrainSpeakerConfig) -> int:
    """Split a step's prompts over processes.

    Returns:
        Prompts of a step in each process.

    Raises:
        ConfigError: If the numbers do not divide.
    """
    processes = int(os.environ.get("WORLD_SIZE", config.num_processes))
    if config.prompts_per_step % processes:
        raise ConfigError(
            f"training.prompts_per_step is {config.prompts_per_step}, which {processes} processes cannot share "
            f"equally; make it a multiple of {processes}"
        )
    share = config.prompts_per_step // processes
    micro = min(config.micro_batch_prompts or share, share)
    if share % micro:
        raise ConfigError(
            f"training.micro_batch_prompts is {micro}, which does not divide the {share} prompts of each process "
            f"({config.prompts_per_step} prompts over {processes} processes)"
        )
    return share


def load_rows(folder: Path, config: TrainSpeakerConfig) -> "Dataset":
    """Load the data set.

    Raises:
        DataError: If it is missing, lacks a column, or has fewer rows than one step needs.
    """
    from datasets import Dataset, load_from_disk

    try:
        rows = load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} holds no data set: {error}; run build-dataset again") from error
    if not isinstance(rows, Dataset):
        raise DataError(f"{folder} holds a {type(rows).__name__}; expected one table; run build-dataset again")
    if missing := sorted(set(COLUMNS) - set(rows.column_names)):
        raise DataError(f"{folder} has no column {', '.join(missing)}; it has {', '.join(rows.column_names)}")
    if len(rows) < config.prompts_per_step:
        raise DataError(
            f"{folder} has {len(rows)} rows, one step needs training.prompts_per_step = {config.prompts_per_step}; "
            "build more games, or lower it"
        )
    return rows


def newest_checkpoint(folder: Path) -> Path | None:
    """Find the complete checkpoint of the latest step; half-written ones are removed by the main process."""
    complete = []
    for path in folder.glob("checkpoint-*"):
        if (path / "complete").is_file():
            complete.append(path)
        elif int(os.environ.get("RANK", "0")) == 0:
            shutil.rmtree(path, ignore_errors=True)
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def build_trainer(
    rows: "Dataset",
    listener: AnsweringModel | None,
    work_dir: Path,
    config: TrainSpeakerConfig,
    data_root: Path,
    runtime: Runtime,
) -> "SpeakerTrainer":
    """Load the speaker and put the trainer together.

    Raises:
        ModelError: If the speaker cannot be loaded, or has no layer of the adapter's names.
    """
    from transformers import PrinterCallback

    from lewis_core.models.loading import load_model
    from lewis_core.training.queries import separate_photos

    rows, photos = separate_photos(rows, data_root)
    rewards, weights = build_rewards(config.rewards, listener)
    model, processor = load_model(config.model, runtime, trainable=True)
    trainer = assemble_trainer(model, processor, rows, photos, rewards, weights, work_dir, config, runtime)
    trainer.remove_callback(PrinterCallback)
    return trainer


def assemble_trainer(
    model: Any,
    processor: Any,
    rows: "Dataset",
    photos: ImageSource,
    rewards: Sequence[Any],
    weights: list[float],
    work_dir: Path,
    config: TrainSpeakerConfig,
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
    from lewis_core.training.shared_prefix import SharedPrefixTrainer
    from lewis_core.training.trainer import SpeakerTrainer

    chosen = _plan(model, config, work_dir)
    arguments = {
        "load": photos.load,
        "may_checkpoint": config.gradient_checkpointing == "auto" and not chosen.checkpointing,
        "model": model,
        "reward_funcs": list(rewards),
        "args": training_arguments(config, chosen, weights, work_dir / "checkpoints", model.device.type),
        "train_dataset": rows,
        "processing_class": processor,
        "peft_config": None if config.model.adapter else adapter_config(model, config.lora),
    }
    if config.model.engine == "plain":
        return SpeakerTrainer(**arguments)
    return SharedPrefixTrainer(encode=_image_encoder(model, processor, photos, runtime), **arguments)


def _plan(model: Any, config: TrainSpeakerConfig, work_dir: Path) -> "Plan":
    """Decide on micro-batches and checkpointing; a run that goes on keeps its first decision."""
    from lewis_core.training import memory

    share, file = check_batches(config), work_dir / PLAN
    if file.is_file():
        kept = memory.Plan(**json.loads(file.read_text(encoding="utf-8")))
        if share % kept.prompts == 0:
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
    config: TrainSpeakerConfig, plan: "Plan", weights: list[float], folder: Path, device: str
) -> Any:
    """Translate the settings into TRL's."""
    from trl.trainer.grpo_config import GRPOConfig

    return GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=plan.prompts * config.num_generations,
        gradient_accumulation_steps=check_batches(config) // plan.prompts,
        num_generations=config.num_generations,
        max_steps=config.max_steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler,
        warmup_steps=config.warmup_steps,
        max_grad_norm=config.max_grad_norm,
        beta=config.beta,
        temperature=config.temperature,
        max_completion_length=config.max_new_tokens,
        loss_type=config.loss_type,
        scale_rewards=config.scale_rewards,
        reward_weights=weights,
        activation_checkpointing=plan.checkpointing,
        seed=config.seed,
        use_cpu=device == "cpu",
        bf16=device == "cuda" and config.model.dtype != "float32",
        fp16=False,
        save_strategy="steps",
        save_steps=config.save_steps,
        save_total_limit=2,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
    )


def adapter_config(model: Any, settings: LoraSettings) -> Any:
    """Adapt the language model's named linear layers; the vision tower stays as it is.

    Raises:
        ModelError: If the language model has no such layers.
    """
    from peft import LoraConfig

    names = "|".join(settings.target_modules)
    layers = [name for name, _ in model.named_modules() if "language_model." in name]
    if not any(name.endswith(settings.target_modules) for name in layers):
        raise ModelError(f"the language model has no layers named {names}; set training.lora.target_modules")
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


def _write_results(
    trainer: "SpeakerTrainer",
    rows: "Dataset",
    config: TrainSpeakerConfig,
    output_dir: Path,
    work_dir: Path,
) -> JsonObject:
    """Write the adapter, the logs and the summary; every process takes part in gathering the weights."""
    from lewis_core.training.callbacks import COMPLETIONS, METRICS, read_rows

    trainer.save_model(str(work_dir / "final"))
    metrics = read_rows(work_dir / METRICS)
    summary = {
        "steps": trainer.state.global_step,
        "completions": trainer.state.global_step * trainer.args.generation_batch_size,
        "num_candidates": len(rows[0]["candidates"]),
        **_ends(metrics, "reward", "reward"),
        **_ends(metrics, "listener/accuracy", "accuracy"),
    }
    if trainer.accelerator.is_main_process:
        _copy_adapter(work_dir / "final", output_dir / "adapter", config.model.path)
        for name in (METRICS, COMPLETIONS):
            shutil.copyfile(work_dir / name, output_dir / name)
        (output_dir / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def _ends(metrics: list[JsonObject], name: str, shown: str) -> JsonObject:
    """Mean of a metric over the first and over the last steps, rounded to 4 digits."""
    values = [row[name] for row in metrics if name in row]
    if not values:
        return {}
    return {f"first_{shown}": round(fmean(values[:ENDS]), 4), f"last_{shown}": round(fmean(values[-ENDS:]), 4)}


def _copy_adapter(source: Path, target: Path, base: str) -> None:
    """Copy weights and settings of the adapter; the settings name the base as the run's settings do."""
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "adapter_model.safetensors", target / "adapter_model.safetensors")
    settings = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = base
    (target / "adapter_config.json").write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n", encoding="utf-8")
