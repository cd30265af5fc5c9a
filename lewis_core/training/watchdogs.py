"""Notice when training goes wrong in a known way: warn, then stop with the evidence saved.

What is judged are the numbers that a step logs, which are the same in every process. A run that goes on judges the
rows of its metrics file again, so that an interruption forgets nothing.
"""

import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from accelerate.utils import DistributedType, broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lewis_core.config.watchdogs import WatchdogsConfig
from lewis_core.errors import WatchdogError
from lewis_core.reporting import Reporter
from lewis_core.training.journal import Journal, read_rows

logger = logging.getLogger(__name__)
FIRST_STEPS = 5
"""Steps whose mean length later ones are compared with."""
EVIDENCE_STEPS = 200
"""Last rows of metrics that are saved as evidence."""
LENGTH = "completions/mean_length"
Row = Mapping[str, Any]


class Trouble(NamedTuple):
    """What is wrong with a step."""

    name: str
    found: str
    """What was seen, with the limit that it passes."""
    advice: str
    way: str = ""
    """In which of several ways; steps in another way are no steps in a row."""


class Alarm(NamedTuple):
    """A trouble that has lasted."""

    trouble: Trouble
    steps: int
    """Steps in a row."""
    stops: bool
    """Whether training has to end; otherwise it is a warning."""


def find_troubles(row: Row, first_length: float | None, config: WatchdogsConfig) -> list[Trouble]:
    """Judge one step.

    Args:
        row: What it logged; numbers that are not finite are missing.
        first_length: Mean tokens of a completion in the first steps, if they are over.
        config: Limits.
    """
    found = [
        _not_finite(row),
        _above(row, "frac_reward_zero_std", config.equal_rewards_frac, "reward-collapse", "of the groups have equal "
               "rewards", "look at the completions: are they all alike, all malformed, or all perfect? A softer reward "
               "shape or a higher temperature brings differences back", inclusive=True),
        _above(row, "completions/clipped_ratio", config.max_cut_frac, "length-explosion", "of the completions are cut "
               "off", "raise training.max_new_tokens, or rewards.length.weight"),
        _above(row, "kl", config.max_kl, "kl-blow-up", "nats per token of divergence from the base", "lower "
               "training.learning_rate or raise training.beta"),
        _above(row, "hacks/degenerate", config.max_degenerate_frac, "degenerate-text", "of the completions repeat "
               "themselves, are empty, stuffed with tags or echo the prompt", "raise the weight of rewards.repetition "
               "and rewards.format, or training.beta; lower training.learning_rate"),
        _above(row, "listener/masked_frac", config.max_masked_frac, "masked", "of the completions cannot be judged by "
               "the listener", "see the listener's log"),
        _length(row, first_length, config),
        _same_answer(row, config),
    ]  # fmt: skip
    return [trouble for trouble in found if trouble is not None]


def _not_finite(row: Row) -> Trouble | None:
    bad = [name for name in ("loss", "grad_norm") if not _is_finite(row.get(name))]
    advice = "lower training.learning_rate, or train in float32 to see where it comes from"
    return Trouble("not-finite", f"{' and '.join(bad)} not finite", advice) if bad else None


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _above(
    row: Row, metric: str, limit: float, name: str, what: str, advice: str, inclusive: bool = False
) -> Trouble | None:
    value = row.get(metric)
    if value is None or not (value > limit or (inclusive and value >= limit)):
        return None
    return Trouble(name, f"{value:.3g} {what} ({metric}, limit {limit:g})", advice)


def _length(row: Row, first: float | None, config: WatchdogsConfig) -> Trouble | None:
    length = row.get(LENGTH)
    if length is None:
        return None
    if length < config.min_mean_tokens or (first and length * config.length_factor < first):
        found = f"{length:.3g} tokens a completion" + (f", {first:.3g} in the first steps" if first else "")
        return Trouble("length-collapse", found, "raise rewards.length.weight, or lower training.learning_rate")
    if first and length > first * config.length_factor:
        found = f"{length:.3g} tokens a completion, {first:.3g} in the first steps"
        return Trouble("length-explosion", found, "raise rewards.length.weight, or lower training.learning_rate")
    return None


def _same_answer(row: Row, config: WatchdogsConfig) -> Trouble | None:
    yes, readable = row.get("answers/yes"), 1.0 - row.get("answers/unreadable", 0.0)
    if yes is None or readable <= 0:
        return None
    shares = {"yes": yes / readable, "no": 1.0 - yes / readable}
    word = max(shares, key=lambda one: shares[one])
    if shares[word] < config.max_same_answer_frac:
        return None
    return Trouble(
        "answer-collapse",
        f"{shares[word]:.3g} of the readable answers are {word} (answers/yes, limit {config.max_same_answer_frac:g})",
        "raise listener_training.temperature until groups differ, keep dataset.same_frac near 0.5, and lower "
        "listener_training.learning_rate",
        way=word,
    )


class Watchdogs:
    """Counts how long each trouble lasts.

    Args:
        config: Limits.
        can_skip: Whether an update that is not finite could be left out; if not, the first one is fatal.
    """

    def __init__(self, config: WatchdogsConfig, *, can_skip: bool = True) -> None:
        self._config, self._can_skip = config, can_skip
        self._lengths: list[float] = []
        self._lasted: dict[tuple[str, str], int] = {}

    def take(self, row: Row) -> list[Alarm]:
        """Judge the next step; returns the troubles that have lasted long enough to be told, worst first."""
        first = fmean(self._lengths) if len(self._lengths) == FIRST_STEPS else None
        troubles = {trouble.name: trouble for trouble in find_troubles(row, first, self._config)}
        if first is None and row.get(LENGTH) is not None:
            self._lengths.append(float(row[LENGTH]))
        now = [(trouble.name, trouble.way) for trouble in troubles.values()]
        self._lasted = {which: self._lasted.get(which, 0) + 1 for which in now}
        alarms = [self._alarm(trouble) for trouble in troubles.values()]
        return sorted((alarm for alarm in alarms if alarm is not None), key=lambda alarm: not alarm.stops)

    def _alarm(self, trouble: Trouble) -> Alarm | None:
        steps, config = self._lasted[trouble.name, trouble.way], self._config
        warn_after, stop_after = config.warn_after, config.stop_after
        if trouble.name == "not-finite":
            warn_after, stop_after = 1, config.non_finite_stop_after if self._can_skip else 1
        if config.action == "stop" and steps >= stop_after:
            return Alarm(trouble, steps, stops=True)
        return Alarm(trouble, steps, stops=False) if steps >= warn_after and (steps - warn_after) % 10 == 0 else None


class WatchdogCallback(TrainerCallback):
    """Judges every step that the trainer logs; all processes come to the same judgement.

    Args:
        config: Limits.
        trainer: Its processes, and its sample completions for the evidence.
        metrics: The run's metrics file.
        reporter: Is told about troubles, and gets the evidence.
        folder: Where evidence is saved.
        rename: From what the trainer logs to the names of the metrics file.
    """

    def __init__(
        self,
        config: WatchdogsConfig,
        trainer: Any,
        metrics: Journal,
        reporter: Reporter,
        folder: Path,
        rename: Callable[[Mapping[str, Any]], dict[str, float]],
    ) -> None:
        self._config, self._trainer, self._metrics = config, trainer, metrics
        self._reporter, self._folder, self._rename = reporter, folder, rename
        self._watchdogs = Watchdogs(config)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Judge again what was logged up to the step that training starts from."""
        can_skip = self._trainer.accelerator.distributed_type != DistributedType.DEEPSPEED
        self._watchdogs = Watchdogs(self._config, can_skip=can_skip)
        rows = read_rows(self._metrics.path, state.global_step) if state.is_world_process_zero else []
        told = [rows]
        broadcast_object_list(told)
        for earlier in told[0]:
            self._watchdogs.take(earlier)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Judge a step.

        Raises:
            WatchdogError: If a trouble has lasted too long; the step's checkpoint is not written.
        """
        if self._config.action == "off" or not logs or "loss" not in logs:
            return
        row: dict[str, Any] = {"step": state.global_step, **self._rename(logs)}
        alarms = self._watchdogs.take(row)
        if state.is_world_process_zero:
            self._tell(alarms, state.global_step)
        if alarms and alarms[0].stops:
            folder = self._folder / "evidence" / f"step-{state.global_step:06d}"
            if state.is_world_process_zero:
                self._save(folder, row, alarms, self._trainer.samples())
            trouble, steps = alarms[0].trouble, alarms[0].steps
            raise WatchdogError(
                f"{trouble.name}: {trouble.found}, in {steps} steps up to step {state.global_step}. {trouble.advice}. "
                f"The last completions and metrics are in {folder}. training.watchdogs has the limits; with other "
                "limits, or action = 'warn', the same command goes on from the last checkpoint"
            )

    def _tell(self, alarms: Sequence[Alarm], step: int) -> None:
        for alarm in alarms:
            trouble = alarm.trouble
            logger.warning("%s for %d steps: %s; %s", trouble.name, alarm.steps, trouble.found, trouble.advice)
            self._reporter.log_metrics({f"watchdog/{trouble.name}": float(alarm.steps)}, step)

    def _save(self, folder: Path, row: Row, alarms: Sequence[Alarm], samples: Sequence[Row]) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        reason = [{**alarm.trouble._asdict(), "steps": alarm.steps, "stops": alarm.stops} for alarm in alarms]
        files = {
            "reason.json": json.dumps({"alarms": reason, "limits": self._config.model_dump()}, indent=1) + "\n",
            "metrics.jsonl": _lines([*read_rows(self._metrics.path, row["step"] - 1)[-EVIDENCE_STEPS:], row]),
            "completions.jsonl": _lines(samples),
        }
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
            self._reporter.log_artifact(folder / name)


def _lines(rows: Sequence[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
