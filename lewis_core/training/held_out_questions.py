"""Ask a listener in training about things that it is not trained on, before training, now and then, and at the end.

Its answers are greedy, so that they do not depend on the temperature of the rollouts. Before and after are compared by
a paired test with concepts as units: questions about one thing stand or fall together.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from lewis_core.config.evaluation import StatisticsConfig
from lewis_core.config.listener_training import TrainListenerConfig
from lewis_core.evaluation.statistics import compare_measures, mean_measure
from lewis_core.records import JsonObject
from lewis_core.rewards.answers import Answer, parse_answer, statistics
from lewis_core.seeding import stable_rng
from lewis_core.training.held_out import Measurement, aside, describe
from lewis_core.training.trainer import Row, SpeakerTrainer

ANSWERS = "held_out_answers.json"
"""File of the work folder: readable answers by step, of the first and of the newest measurement."""


def choose_questions(rows: Sequence[Row], config: TrainListenerConfig) -> list[Row]:
    """Choose the questions that are always asked: the same ones in every run."""
    order = stable_rng(0, "held-out questions").permutation(len(rows))[: config.held_out_questions]
    return [dict(rows[int(index)]) for index in order]


class HeldOutQuestions(Measurement):
    """Every M steps: the listener answers the same questions about held-out things.

    Logged beside the step's other metrics: ``held_out_answers/accuracy``, ``…/yes``, ``…/unreadable``,
    ``…/accuracy_yes`` and ``…/accuracy_no``. What it answered before the first update is logged with the
    first step. Nothing that is measured changes what is trained.

    Args:
        trainer: Whose model answers.
        rows: The questions, with their right answers.
        folder: Receives :data:`ANSWERS`.
        config: How often, and how many questions at once.
    """

    sign = "held_out_answers/accuracy"

    def __init__(self, trainer: SpeakerTrainer, rows: Sequence[Row], folder: Path, config: TrainListenerConfig) -> None:
        super().__init__(trainer, config.held_out_steps)
        self._rows, self._file, self._at_once = list(rows), folder / ANSWERS, config.prompts_per_step

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Measure what training starts from, too; it is logged with the first step."""
        if state.global_step == 0:
            self._log_with_step(self._measure_aside(state))
        super().on_train_begin(args, state, control)

    def _measure(self, state: TrainerState) -> dict[str, float]:
        with aside(self._trainer):
            found = self._answer()
        if state.is_world_process_zero:
            kept = read_answers(self._file) if state.global_step else {}
            first = {step: answers for step, answers in kept.items() if step == 0}
            text = json.dumps({str(step): answers for step, answers in (first | {state.global_step: found}).items()})
            self._file.with_suffix(".tmp").write_text(text + "\n", encoding="utf-8")
            self._file.with_suffix(".tmp").replace(self._file)
        numbers = statistics(found, [row["answer"] for row in self._rows])
        return {f"held_out_answers/{name}": value for name, value in numbers.items()}

    def _is_missing(self, step: int) -> bool:
        """Also where the first step's row has the numbers of what training started from."""
        return super()._is_missing(step) or step not in read_answers(self._file)

    def _answer(self) -> list[Answer]:
        with self._trainer.greedy():
            texts = [
                text
                for start in range(0, len(self._rows), self._at_once)
                for text in describe(self._trainer, self._rows[start : start + self._at_once])
            ]
        return [parse_answer(text) for text in texts]


def read_answers(file: Path) -> dict[int, list[Answer]]:
    """Read answers by step; nothing where nothing was measured."""
    if not file.is_file():
        return {}
    return {int(step): answers for step, answers in json.loads(file.read_text(encoding="utf-8")).items()}


def compare_answers(rows: Sequence[Row], before: Sequence[Answer], after: Sequence[Answer]) -> JsonObject:
    """Compare the answers before and after training.

    Args:
        rows: The questions.
        before: Answers of the model that training started from.
        after: Answers of what it made.

    Returns:
        Questions, and ``held_out_``: accuracy and share of yes before and after; where there are two concepts or
        more, the interval of the difference in accuracy and the two-sided p-value of a permutation test.
    """
    right = [row["answer"] for row in rows]
    numbers: JsonObject = {"held_out_questions": len(rows)}
    for name, found in (("before", before), ("after", after)):
        of_found = statistics(found, right)
        numbers |= {f"held_out_{key}_{name}": round(of_found[key], 4) for key in ("accuracy", "yes", "unreadable")}

    def measure(found: Sequence[Answer]) -> Any:
        hits = [float(one == wanted) for one, wanted in zip(found, right, strict=True)]
        return mean_measure([(row["concept"], hit) for row, hit in zip(rows, hits, strict=True)])

    result = compare_measures(measure(before), measure(after), StatisticsConfig())
    if result is not None:
        numbers["held_out_difference_low"], numbers["held_out_difference_high"] = (
            round(result.low, 4),
            round(result.high, 4),
        )
        numbers["held_out_p_value"] = round(result.p_value, 5)
    return numbers
