"""Train a speaker by GRPO: descriptions that a frozen listener understands are made likelier.

Training goes on where it was stopped: checkpoints lie in the work folder, and the newest complete one is used.
Started by ``accelerate launch`` for several GPUs, or called in one process.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from lewis_core.artifacts import ArtifactRef, digest_json
from lewis_core.config.base import Runtime
from lewis_core.config.training import TrainSpeakerConfig
from lewis_core.listener.client import HttpModel
from lewis_core.models.protocol import AnsweringModel
from lewis_core.records import JsonObject
from lewis_core.reporting import Reporter
from lewis_core.rewards.trl import build_rewards
from lewis_core.stages import identity
from lewis_core.training.assemble import check_batches
from lewis_core.training.preflight import check_training
from lewis_core.training.rows import load_rows
from lewis_core.training.session import build_trainer_of, run_training

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import TrainerCallback

    from lewis_core.training.trainer import SpeakerTrainer

HELD_OUT_OUTAGE_S = 10.0
"""Longest wait for a held-out listener that does not answer: it costs a measurement, and training goes on."""
COLUMNS = ("prompt", "query", "candidates", "target_index", "category_word")


def train_speaker(
    dataset: ArtifactRef,
    output_dir: Path,
    work_dir: Path,
    config: TrainSpeakerConfig,
    data_root: Path,
    service_url: str | None,
    runtime: Runtime,
    reporter: Reporter,
    held_out_url: str | None = None,
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
        held_out_url: Address of the held-out listener's service, if there is one.

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
    rows = load_rows(dataset.path / "dataset", config, COLUMNS)
    check_training(config, rows, runtime)
    listener = held_out = None
    if config.rewards.listener.weight > 0 and service_url:
        listener = HttpModel(service_url, outage_s=config.patience.outage_s, deadline_s=config.patience.busy_s)
    if config.held_out_listener is not None and held_out_url:
        held_out = HttpModel(held_out_url, outage_s=HELD_OUT_OUTAGE_S, deadline_s=config.patience.busy_s)
    return train_on_rows(
        *(rows, listener, output_dir, work_dir, config, data_root, runtime, reporter),
        dataset_digest=dataset.digest,
        held_out=held_out,
    )


def train_on_rows(
    rows: "Dataset",
    listener: AnsweringModel | None,
    output_dir: Path,
    work_dir: Path,
    config: TrainSpeakerConfig,
    data_root: Path,
    runtime: Runtime,
    reporter: Reporter,
    dataset_digest: str = "",
    held_out: AnsweringModel | None = None,
) -> JsonObject:
    """Train on rows that are in memory, with any listener; else as :func:`train_speaker`."""
    rewards, weights = build_rewards(config.rewards, listener)
    facts: JsonObject = {"num_candidates": len(rows[0]["candidates"])}
    lineage = {
        "training data": f"{len(rows)} games of {facts['num_candidates']} candidates",
        "data digest": dataset_digest or "rows in memory",
        "settings digest": digest_json(identity(config)),
        "base weights": digest_json(identity(config.model)),
        "listener": f"{config.listener.path} ({digest_json(identity(config.listener))[:12]})",
    }

    def watch(trainer: "SpeakerTrainer") -> "TrainerCallback":
        from lewis_core.training.held_out import HeldOutCallback, choose_games

        assert held_out is not None
        return HeldOutCallback(trainer, choose_games(trainer.train_dataset, config), listener, held_out, config)

    return run_training(
        *(rows, rewards, weights, output_dir, work_dir, config, data_root, runtime, reporter, facts, lineage),
        watchers=[watch] if held_out is not None else [],
    )


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
    rewards, weights = build_rewards(config.rewards, listener)
    return build_trainer_of(rows, rewards, weights, work_dir, config, data_root, runtime)
