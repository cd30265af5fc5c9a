"""Train a listener by GRPO: yes-or-no questions about photos, answered in words, rewarded for the right answer.

The same trainer as for speakers, with rows that show one photo or two and say what the right answer is.
"""

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from lewis_core.artifacts import ArtifactRef
from lewis_core.config.base import Runtime
from lewis_core.config.listener_training import TrainListenerConfig
from lewis_core.config.watchdogs import WatchdogsConfig
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
    from transformers import TrainerCallback

    from lewis_core.training.trainer import Row, SpeakerTrainer

logger = logging.getLogger(__name__)
COLUMNS = ("prompt", "photos", "answer", "category_word", "concept")
HELD_OUT = "held_out.json"


def train_listener(
    dataset: ArtifactRef,
    output_dir: Path,
    work_dir: Path,
    config: TrainListenerConfig,
    data_root: Path,
    runtime: Runtime,
    reporter: Reporter,
    held_out_dataset: ArtifactRef | None = None,
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
        held_out_dataset: The same for concepts that are not trained on: asked, never trained on.

    Returns:
        Steps, completions, the mean reward and share of right answers of the first and last steps, and the right
        answers on held-out concepts before and after, with a paired test (also in ``held_out.json``).

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
    questions = _held_out_questions(held_out_dataset, config)

    def watch(trainer: "SpeakerTrainer") -> "TrainerCallback":
        from lewis_core.training.held_out_questions import HeldOutQuestions

        return HeldOutQuestions(trainer, questions, work_dir, config)

    summary = run_training(
        *(rows, rewards, weights, output_dir, work_dir, config, data_root, runtime, reporter, facts, lineage),
        watchers=[watch] if questions else [],
    )
    return summary | (_compare(questions, output_dir, work_dir, config.watchdogs) if questions else {})


def _held_out_questions(dataset: ArtifactRef | None, config: TrainListenerConfig) -> "list[Row]":
    if dataset is None or not config.held_out_questions:
        return []
    from lewis_core.training.held_out_questions import choose_questions

    found = load_rows(dataset.path / "dataset", config.model_copy(update={"prompts_per_step": 1}), COLUMNS)
    return choose_questions(list(found), config)


def _compare(questions: "list[Row]", output_dir: Path, work_dir: Path, watchdogs: WatchdogsConfig) -> JsonObject:
    from lewis_core.training.held_out_questions import ANSWERS, compare_answers, read_answers

    answers = read_answers(work_dir / ANSWERS)
    if 0 not in answers:
        return {}
    found = compare_answers(questions, answers[0], answers[max(answers)])
    if int(os.environ.get("RANK", "0")) == 0:
        (output_dir / HELD_OUT).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    yes, limit = found["held_out_yes_after"], watchdogs.max_same_answer_frac
    if not 1 - limit < yes < limit:
        logger.warning(
            "answer-collapse: the trained listener says %s to nearly every question about held-out things (share of "
            "yes: %.3f), whatever they show; raise listener_training.temperature until groups differ",
            *("yes" if yes > 0.5 else "no", yes),
        )
    return found


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
