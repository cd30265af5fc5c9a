"""From the trainer's events to a :class:`~lewis_core.reporting.Reporter` and to files."""

import logging
import math
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lewis_core.config.grpo import GrpoConfig
from lewis_core.models.images import ImageSource
from lewis_core.reporting import Reporter
from lewis_core.training.clock import TIMINGS
from lewis_core.training.insight import derive, utilisation_of
from lewis_core.training.journal import Journal
from lewis_core.training.meeting import StopFlag
from lewis_core.training.samples import render_page
from lewis_core.training.trainer import SpeakerTrainer
from lewis_core.training.watchdogs import WatchdogCallback

logger = logging.getLogger(__name__)
METRICS, COMPLETIONS, TIMES = "metrics.jsonl", "completions.jsonl", "timings.jsonl"
SAMPLES = "samples"
"""Folder of pages with sample completions."""
HELD_OUT = "held_out"
"""Beginning of the names of what is measured between steps."""
_DROPPED = ("epoch", "num_tokens", "total_flos", "clip_ratio/low_min", "clip_ratio/high_max", "step_time")


def rename_metrics(logs: Mapping[str, Any]) -> dict[str, float]:
    """Choose and name what is tracked of a step's logs: finite numbers, parts of the reward as ``rewards/<name>``.

    >>> rename_metrics({"rewards/format/mean": 1, "rewards/format/std": 0.2, "kl": 0.5, "epoch": 2, "loss": None})
    {'rewards/format': 1.0, 'kl': 0.5}
    """
    metrics = {}
    for name, value in logs.items():
        if not isinstance(value, int | float) or not math.isfinite(value) or name.startswith(_DROPPED):
            continue
        if name.startswith("rewards/"):
            if name.endswith("/std"):
                continue
            name = name.removesuffix("/mean")  # noqa: PLW2901
        metrics[name] = float(value)
    return metrics


class ReportCallback(TrainerCallback):
    """Tells the reporter, and three JSONL files, what happens at every step.

    What was measured (seconds, shares, memory) is in a file of its own, so that equal runs write equal bytes to the
    others.

    Args:
        trainer: Whose sample completions are shown.
        reporter: Sink for metrics, progress, tables and pages.
        folder: Where the files grow; rows after the step that training resumes from are removed.
        config: Steps between tables of sample completions, and what is trained.
        candidates: Photos that listeners choose from, for the pages.
    """

    def __init__(
        self, trainer: SpeakerTrainer, reporter: Reporter, folder: Path, config: GrpoConfig, candidates: ImageSource
    ) -> None:
        self._trainer, self._reporter, self._folder = trainer, reporter, folder
        self._sample_steps, self._candidates = config.sample_steps, candidates
        self._how = utilisation_of(trainer.model, trains_all=config.full_finetuning)
        self._times = Journal(folder / TIMES)
        self._started, self._first_step, self._step_started = 0.0, 0, 0.0
        self.metrics, self._completions = Journal(folder / METRICS), Journal(folder / COMPLETIONS)
        trainer.journals += [self.metrics, self._completions]

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Cut the files back to the step that training starts from."""
        self._started, self._first_step = time.monotonic(), state.global_step
        if state.is_world_process_zero:
            for journal in (self.metrics, self._completions, self._times):
                journal.rewind(state.global_step)
            self._reporter.progress(state.global_step, state.max_steps, "steps")

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock."""
        self._step_started = time.monotonic()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Track a step's metrics, and now and then its completions."""
        if not state.is_world_process_zero or not logs:
            return
        if "loss" not in logs:  # the end, or a measurement that was made up for
            if late := {name: value for name, value in logs.items() if name.startswith(HELD_OUT)}:
                self.metrics.amend(state.global_step, late)
                self._reporter.log_metrics(late, state.global_step)
            return
        now, step = time.monotonic(), state.global_step
        metrics, step_s = rename_metrics(logs), now - self._step_started
        metrics |= derive(logs, step_s, self._trainer.take_latencies(), self._how)
        self._reporter.log_metrics({**metrics, "step_s": step_s}, step)
        measured = {name: value for name, value in metrics.items() if name.startswith(TIMINGS)}
        self._times.append([{"step": step, "step_s": step_s, **measured}])
        kept = {name: value for name, value in metrics.items() if not name.startswith(TIMINGS)}
        self.metrics.append([{"step": step, **kept}])
        if step % self._sample_steps == 0 or step in (1, state.max_steps):
            samples = self._trainer.samples()
            self._completions.append([{"step": step, **row} for row in samples])
            self._reporter.log_table("completions", samples, step)
            self._show(samples, step)
        left = (now - self._started) / (step - self._first_step) * (state.max_steps - step)
        shown = ", ".join(f"{name} {metrics[name]:.3f}" for name in ("reward", "listener/accuracy") if name in metrics)
        logger.info("step %d/%d, %s, %.1f s, %.0f s left", step, state.max_steps, shown, step_s, left)
        self._reporter.progress(step, state.max_steps, "steps")

    def _show(self, samples: Sequence[Mapping[str, Any]], step: int) -> None:
        """Write a page with photos; a page that cannot be written is no reason to end training."""
        page = self._folder / SAMPLES / f"step-{step:06d}.html"
        text = render_page(step, samples, self._trainer.load_photo, self._candidates.load)
        try:
            page.parent.mkdir(exist_ok=True)
            page.write_text(text, encoding="utf-8")
        except OSError as error:
            logger.warning("%s cannot be written: %s", page, error)
            return
        self._reporter.log_artifact(page)


def observe(
    trainer: SpeakerTrainer, reporter: Reporter, folder: Path, config: GrpoConfig, candidates: ImageSource
) -> None:
    """Let everything that watches a run watch this one: reporter, files, watchdogs.

    Args:
        trainer: What is watched.
        reporter: Sink for metrics, progress, tables and evidence.
        folder: Where the run's files are.
        config: How often, and the watchdogs' limits.
        candidates: Photos that listeners choose from.
    """
    report = ReportCallback(trainer, reporter, folder, config, candidates)
    trainer.add_callback(report)
    trainer.add_callback(WatchdogCallback(config.watchdogs, trainer, report.metrics, reporter, folder, rename_metrics))


class StopOnSignal(TrainerCallback):
    """On SIGTERM: give up the step that was begun, save the last finished one, stop; all processes together.

    Between two updates from the same completions training goes on to the last of them.

    Args:
        every: Updates made of one generation of completions; training stops between generations.
    """

    def __init__(self, every: int = 1) -> None:
        self._every = every
        self.flag = StopFlag()
        """Set by the signal; the trainer's meeting gets it."""
        self.stopped = False
        """Whether training was stopped by the signal."""
        self._previous: Any = None

    def __enter__(self) -> "StopOnSignal":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self.flag.ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop if any process was asked to."""
        if state.global_step % self._every:  # between generations: what they made is not saved
            return
        asked, owing = zip(*gather_object([(self.flag.is_set(), self.flag.gave_up)]), strict=True)
        if any(asked) and (state.global_step < state.max_steps or any(owing)):
            self.stopped = True
            control.should_save = control.should_training_stop = True
