"""Ask a second listener, which nobody trains against, about a fixed set of games.

A speaker and its listener can agree on a private code: the training listener understands more and more, another one
does not. Both judge the same texts, so that the gap between them is that code, and nothing else.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lewis_core.config.training import ListenerRewardConfig, TrainSpeakerConfig
from lewis_core.errors import ListenerError, StoppedError
from lewis_core.models.protocol import AnsweringModel
from lewis_core.rewards.listener import is_first, posterior
from lewis_core.rewards.trl import Judgement, ListenerReward
from lewis_core.seeding import stable_rng
from lewis_core.training.checkpoints import RandomStates
from lewis_core.training.clock import StepClock
from lewis_core.training.journal import read_rows
from lewis_core.training.processes import as_main
from lewis_core.training.trainer import Row, SpeakerTrainer

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)
OF_A_GENERATION = ("_rows", "_prompt_of_row", "_queries", "_prompts", "_listener", "_clock")
"""What the trainer keeps of the completions that it works on."""


def choose_games(rows: "Dataset", config: TrainSpeakerConfig) -> list[Row]:
    """Choose the games that are always asked about: the same ones in every run of a seed."""
    count = min(config.held_out_games, len(rows))
    order = stable_rng(config.seed, "held-out listener").permutation(len(rows))[:count]
    return [dict(rows[int(index)]) for index in order]


@contextmanager
def aside(trainer: SpeakerTrainer) -> Iterator[StepClock]:
    """Let the model do something else between two updates: training does not notice.

    Yields:
        The clock that measures meanwhile.
    """
    kept = {name: getattr(trainer, name) for name in OF_A_GENERATION if hasattr(trainer, name)}
    states = RandomStates()
    clock = trainer._clock = StepClock()
    trainer._listener = None
    try:
        yield clock
    finally:
        for name, value in kept.items():
            setattr(trainer, name, value)
        states.restore()


def describe(trainer: SpeakerTrainer, rows: Sequence[Row]) -> list[str]:
    """Let the speaker describe each row's photo once, as in training; every process writes its share.

    Returns:
        Completions in the order of the rows, in every process.
    """
    processes, mine = trainer.accelerator.num_processes, trainer.accelerator.process_index
    share = -(-len(rows) // processes)  # equal shares: collectives of a spread model need all processes
    own = [rows[index % len(rows)] for index in range(mine * share, (mine + 1) * share)]
    trainer._rows = list(own)
    ids, _, _ = trainer._tokenize_prompts([row["prompt"] for row in own])
    with torch.no_grad():
        written, _ = trainer._generate_single_turn(ids, None, {}, 1)
    texts: list[str] = trainer.processing_class.batch_decode(written, skip_special_tokens=True)
    gathered: list[str] = gather_object(texts)
    return gathered[: len(rows)]


def summarise(judgements: Sequence[Judgement | None], targets: Sequence[int]) -> dict[str, float]:
    """Accuracy over all texts (unreadable ones are not found), posterior and P(yes) of the target over judged ones."""
    judged = [(found, target) for found, target in zip(judgements, targets, strict=True) if found is not None]
    numbers = {"accuracy": sum(is_first(found.yes_log_odds, target) for found, target in judged) / len(judgements)}
    if judged:
        numbers["posterior"] = fmean(posterior(found.yes_log_odds, target) for found, target in judged)
        numbers["target_yes"] = fmean(found.yes_probability[target] for found, target in judged)
    return numbers


class Measurement(TrainerCallback, ABC):
    """Something that is measured now and then after a step, and logged with it; training does not notice.

    On SIGTERM it is given up, and made up for when training goes on from that step: the step's row of metrics is then
    what it would have been.

    Args:
        trainer: What is measured.
        every: Steps between measurements; the last step has one, too.
    """

    sign: ClassVar[str]
    """A metric that every measurement gives."""
    _early: ClassVar[tuple[int, ...]] = ()
    """Further steps that have one."""

    def __init__(self, trainer: SpeakerTrainer, every: int) -> None:
        self._trainer, self._every = trainer, every

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Make up for what is missing of the step that training goes on from."""
        step = state.global_step
        is_owed = self._is_due(state) and as_main(lambda: self._is_missing(step))
        if is_owed and (numbers := self._measure_aside(state)):
            self._trainer.log(numbers)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Measure, if it is time."""
        if not self._is_due(state):
            return
        try:
            numbers = self._measure_aside(state)
        except StoppedError:
            self._trainer.meeting.stop.gave_up = True
            return
        self._log_with_step(numbers)

    def _log_with_step(self, numbers: Mapping[str, float]) -> None:
        """Let numbers be logged with the next step that is logged, in place of any that wait for it."""
        for name, value in numbers.items():
            self._trainer._metrics["train"][name] = [value]

    def _measure_aside(self, state: TrainerState) -> dict[str, float]:
        with self._trainer._clock.measure("held_out"):
            return self._measure(state)

    @abstractmethod
    def _measure(self, state: TrainerState) -> dict[str, float]:
        """Measure; returns the metrics, in the main process at least.

        Raises:
            StoppedError: If training is to stop.
        """

    def _is_due(self, state: TrainerState) -> bool:
        step = state.global_step
        return step > 0 and (step % self._every == 0 or step in (*self._early, state.max_steps))

    def _is_missing(self, step: int) -> bool:
        return not any(row["step"] == step and self.sign in row for row in read_rows(self._trainer.journals[0].path))


class HeldOutCallback(Measurement):
    """Every M steps: both listeners judge what the speaker writes now about a fixed set of games.

    Logged beside the step's other metrics: ``held_out/accuracy``, ``held_out/posterior``, ``held_out/target_yes`` of
    the held-out listener, the same of the training listener as ``held_out/listener_…``, ``held_out/gap`` (accuracy of
    the training listener minus that of the held-out one) and ``held_out/read_frac``. A listener that does not answer
    costs one measurement, never a number.

    Args:
        trainer: Whose speaker writes.
        rows: The games.
        listener: The training listener.
        held_out: The other one.
        config: How often.
    """

    sign = "held_out/accuracy"
    _early = (1,)

    def __init__(
        self,
        trainer: SpeakerTrainer,
        rows: Sequence[Row],
        listener: AnsweringModel | None,
        held_out: AnsweringModel,
        config: TrainSpeakerConfig,
    ) -> None:
        super().__init__(trainer, config.held_out_steps)
        self._rows = list(rows)
        self._judges = {"": held_out} | ({"listener_": listener} if listener is not None else {})

    def _measure(self, state: TrainerState) -> dict[str, float]:
        with aside(self._trainer):
            texts = describe(self._trainer, self._rows)
        numbers = self._judge(texts) if state.is_world_process_zero else {}
        return {f"held_out/{name}": value for name, value in numbers.items()}

    def _judge(self, texts: Sequence[str]) -> dict[str, float]:
        targets = [row["target_index"] for row in self._rows]
        candidates, words = ([row[name] for row in self._rows] for name in ("candidates", "category_word"))
        numbers: dict[str, float] = {}
        for prefix, model in self._judges.items():
            reward = ListenerReward(model, ListenerRewardConfig(), max_masked_frac=1.0, requests=0)
            ask = partial(reward.ask, texts, candidates, words)
            try:
                judgements = self._trainer.meeting.unless_stopped(ask, waits=reward.waits)
            except ListenerError as error:
                logger.warning("the %slistener is not measured at this step: %s", prefix or "held-out ", error)
                return {}
            numbers |= {prefix + name: value for name, value in summarise(judgements, targets).items()}
            numbers["read_frac"] = sum(found is not None for found in judgements) / len(texts)
        if "listener_accuracy" in numbers:
            numbers["gap"] = numbers["listener_accuracy"] - numbers["accuracy"]
        return numbers
