"""A training run from start to end: trainer, callbacks, resuming, results; whoever is trained."""

import json
import logging
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lewis_core.config.base import ModelRef, Runtime
from lewis_core.config.grpo import GrpoConfig
from lewis_core.errors import StoppedError
from lewis_core.models.files import base_folder
from lewis_core.models.images import ImageFolder
from lewis_core.records import JsonObject
from lewis_core.reporting import Reporter
from lewis_core.rewards.trl import OUTAGES
from lewis_core.training.assemble import assemble_trainer
from lewis_core.training.model_card import CARD, render_card
from lewis_core.training.processes import join_process_group

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import TrainerCallback

    from lewis_core.training.trainer import SpeakerTrainer

logger = logging.getLogger(__name__)
EXIT_STOPPED = 143
"""Exit status after SIGTERM (128 + 15), once a checkpoint is saved."""
RENAMED = ".*gradient_checkpointing(_enable|_disable)?. is deprecated"
"""What transformers 5.23 says of names that TRL 1.16 still uses."""
ENDS = 5
"""Steps at either end of training whose means the summary compares."""


def run_training(
    rows: "Dataset",
    rewards: Sequence[Any],
    weights: list[float],
    output_dir: Path,
    work_dir: Path,
    config: GrpoConfig,
    data_root: Path,
    runtime: Runtime,
    reporter: Reporter,
    facts: JsonObject,
    lineage: JsonObject | None = None,
    watchers: Sequence["Callable[[SpeakerTrainer], TrainerCallback]"] = (),
) -> JsonObject:
    """Train, from the newest checkpoint if there is one, and write the results.

    Args:
        rows: Training rows.
        rewards: TRL's reward functions.
        weights: Weight of each.
        output_dir: Receives ``adapter/`` (or ``model/``), ``metrics.jsonl``, ``completions.jsonl``, ``summary.json``.
        work_dir: Holds checkpoints while training runs.
        config: Model, optimisation.
        data_root: Folder that image paths are relative to.
        runtime: Device, threads.
        reporter: Receives metrics, sample completions, progress.
        facts: Added to the summary.
        lineage: What the model card says of the origin: digests, and who judged.
        watchers: Make further callbacks for the trainer.

    Returns:
        The summary, and shares of the steps' time (``…_share``), which the file ``summary.json`` does not have.

    Raises:
        ListenerUnavailableError: If a reward's listener is lost; the last step is saved before.
        SystemExit: With status 143, after SIGTERM and a saved checkpoint.
    """
    from lewis_core.training.callbacks import StopOnSignal, observe
    from lewis_core.training.checkpoints import agree_on_checkpoint
    from lewis_core.training.peers import end_without_peers

    kept = join_process_group(runtime, config.distributed.timeout_s, config.model.dtype)
    checkpoint = agree_on_checkpoint(work_dir / "checkpoints")
    reporter.log_params(config.model_dump(mode="json"))
    with end_without_peers(), StopOnSignal(config.num_iterations) as stop, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=RENAMED, category=FutureWarning)
        trainer = build_trainer_of(rows, rewards, weights, work_dir, config, data_root, runtime)
        del kept  # the trainer's own arguments say from here on how weights are spread
        observe(trainer, reporter, work_dir, config, ImageFolder(data_root))
        for watcher in watchers:
            trainer.add_callback(watcher(trainer))
        trainer.add_callback(stop)
        trainer.meeting.stop = stop.flag
        was_given_up = _train_from(trainer, checkpoint)
    if stop.stopped or was_given_up:
        logger.warning("stopped by a signal; training goes on after step %d", trainer.state.global_step)
        raise SystemExit(EXIT_STOPPED)
    return write_results(trainer, config, output_dir, work_dir, facts, lineage or {})


def _train_from(trainer: "SpeakerTrainer", checkpoint: Path | None) -> bool:
    """Train; returns whether a step was given up because training is to stop. The step before it is saved then.

    Raises:
        ListenerUnavailableError: If a reward's listener is lost; the last step is saved before.
    """
    if checkpoint:
        logger.info("training goes on from %s", checkpoint.name)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except OUTAGES:
        trainer.save_last_step()
        logger.error("the listener is gone; the model is saved after step %d", trainer.state.global_step)
        raise
    except StoppedError:
        trainer.save_last_step()
        return True
    return False


def build_trainer_of(
    rows: "Dataset",
    rewards: Sequence[Any],
    weights: list[float],
    work_dir: Path,
    config: GrpoConfig,
    data_root: Path,
    runtime: Runtime,
) -> "SpeakerTrainer":
    """Load the model and put the trainer together.

    Raises:
        ModelError: If the model cannot be loaded, or has no layer of the adapter's names.
    """
    from transformers import PrinterCallback

    from lewis_core.models.loading import load_model
    from lewis_core.training.queries import separate_photos

    rows, photos = separate_photos(rows, data_root)
    model, processor = load_model(config.model, runtime, trainable=True)
    trainer = assemble_trainer(model, processor, rows, photos, rewards, weights, work_dir, config, runtime)
    trainer.remove_callback(PrinterCallback)
    return trainer


def write_results(
    trainer: "SpeakerTrainer",
    config: GrpoConfig,
    output_dir: Path,
    work_dir: Path,
    facts: JsonObject,
    lineage: JsonObject,
) -> JsonObject:
    """Write what was trained, the logs and the summary; every process takes part in gathering the weights."""
    from lewis_core.training.callbacks import COMPLETIONS, METRICS, SAMPLES, TIMES
    from lewis_core.training.journal import read_rows

    trainer.save_model(str(work_dir / "final"))
    for journal in trainer.journals if trainer.accelerator.is_main_process else ():
        journal.flush()  # rows that a full disk has kept waiting
    metrics = read_rows(work_dir / METRICS)
    summary = {
        "steps": trainer.state.global_step,
        "completions": -(-trainer.state.global_step // config.num_iterations) * trainer.args.generation_batch_size,
        **facts,
        **_ends(metrics, "reward", "reward"),
        **_ends(metrics, "listener/accuracy", "accuracy"),
        **_ends(metrics, "answers/accuracy", "accuracy"),
    }
    if trainer.accelerator.is_main_process:
        folder = output_dir / ("model" if config.full_finetuning else "adapter")
        if config.full_finetuning:
            _copy_model(work_dir / "final", folder, config.model)
        else:
            _copy_adapter(work_dir / "final", folder, config.model.path)
        (folder / CARD).write_text(render_card(config, metrics, lineage), encoding="utf-8")
        for name in (METRICS, COMPLETIONS):
            shutil.copyfile(work_dir / name, output_dir / name)
        if pages := sorted((work_dir / SAMPLES).glob("step-*.html")):
            shutil.copyfile(pages[-1], output_dir / f"{SAMPLES}.html")
        (output_dir / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary | _shares(read_rows(work_dir / TIMES))


def _shares(rows: list[JsonObject]) -> JsonObject:
    """Share of all steps' time by part, e.g. ``listener_wait_share``, rounded to 4 digits."""
    total = sum(row["step_s"] for row in rows)
    names = sorted({name for row in rows for name in row if name.startswith("share/")})
    return {
        f"{name.removeprefix('share/')}_share": round(sum(row.get(name, 0) * row["step_s"] for row in rows) / total, 4)
        for name in names
        if total > 0
    }


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


def _copy_model(source: Path, target: Path, base: ModelRef) -> None:
    """Copy a model that was trained whole: weights, under the names of its base, settings, tokenizer and processor."""
    from lewis_core.training.shards import copy_weights

    left_out = shutil.ignore_patterns("*.bin", "*.pt", "checkpoint-*", "*.safetensors", "*.safetensors.index.json")
    shutil.copytree(source, target, ignore=left_out)
    copy_weights(source, base_folder(base), target)
