"""Train a listener by GRPO: yes-or-no questions about photos, answered in words, rewarded for the right answer.

The same trainer as for speakers, with rows that show one photo or two and say what the right answer is.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from lewis_core.artifacts import ArtifactRef
from lewis_core.config.base import Runtime
from lewis_core.config.listener_training import TrainListenerConfig
from lewis_core.errors import DataError
from lewis_core.records import JsonObject
from lewis_core.reporting import Reporter
from lewis_core.rewards.answers import build_answer_rewards
from lewis_core.training.assemble import check_batches
from lewis_core.training.preflight import check_training
from lewis_core.training.rows import load_rows
from lewis_core.training.session import run_training

if TYPE_CHECKING:
    from datasets import Dataset

COLUMNS = ("prompt", "photos", "answer", "category_word")


def train_listener(
    dataset: ArtifactRef,
    output_dir: Path,
    work_dir: Path,
    config: TrainListenerConfig,
    data_root: Path,
    runtime: Runtime,
    reporter: Reporter,
) -> JsonObject:
    """Train a LoRA adapter of a listener (stage ``train-listener``).

    Args:
        dataset: Artifact with ``dataset/``: rows of prompt, photos, right answer, category word.
        output_dir: Receives ``adapter/``, ``metrics.jsonl``, ``completions.jsonl``, ``summary.json``.
        work_dir: Holds checkpoints while training runs.
        config: Model, rewards, optimisation.
        data_root: Folder that image paths are relative to.
        runtime: Device, threads.
        reporter: Receives metrics, sample completions, progress.

    Returns:
        Steps, completions, and the mean reward and share of right answers of the first and last steps.

    Raises:
        ConfigError: If batch sizes do not fit together, nothing is rewarded, or the model cannot take the prompts.
        DataError: If the data set lacks rows or columns, or has one answer only.
        ModelError: If the listener cannot be loaded or adapted.
        SystemExit: With status 143, after SIGTERM and a saved checkpoint.
    """
    check_batches(config)
    rows = load_rows(dataset.path / "dataset", config, COLUMNS)
    check_answers(rows)
    check_training(config, rows, runtime)
    rewards, weights = build_answer_rewards(config.rewards)
    facts: JsonObject = {"photos": len(rows[0]["photos"]), "questions": config.questions}
    lineage: JsonObject = {"dataset_digest": dataset.digest}
    return run_training(
        rows, rewards, weights, output_dir, work_dir, config, data_root, runtime, reporter, facts, lineage
    )


def check_answers(rows: "Dataset") -> None:
    """Check that both answers occur.

    Raises:
        DataError: If not: a listener would learn to say always the same.
    """
    found = sorted(set(rows["answer"]))
    if found != ["no", "yes"]:
        raise DataError(
            f"the right answers of the data set are {found}; a listener learns from both yes and no: set "
            "dataset.same_frac to something between 0 and 1, e.g. 0.5"
        )
