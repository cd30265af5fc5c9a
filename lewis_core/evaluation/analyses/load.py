"""What analyses read: results of evaluations with their predictions."""

from collections.abc import Sequence
from typing import NamedTuple

from lewis_core.artifacts import ArtifactRef
from lewis_core.errors import EvaluationError
from lewis_core.evaluation import io
from lewis_core.evaluation.metrics import softmax
from lewis_core.evaluation.records import EvaluationResult, Prediction
from lewis_core.records import load_jsonl, load_record


class Evaluation(NamedTuple):
    """One evaluation of one speaker."""

    result: EvaluationResult
    predictions: tuple[Prediction, ...]

    @property
    def key(self) -> tuple[str, str, str]:
        """Speaker, evaluation, answering model."""
        return self.result.speaker, self.result.evaluation, self.result.answering


def load_evaluations(refs: Sequence[ArtifactRef]) -> list[Evaluation]:
    """Read evaluations that have predictions; measurements of texts alone are left out.

    Raises:
        EvaluationError: If one is there twice, or none has predictions.
    """
    loaded: dict[tuple[str, str, str], Evaluation] = {}
    for ref in refs:
        result = load_record(ref.file(io.METRICS), EvaluationResult)
        if not (ref.path / io.PREDICTIONS).is_file():
            continue
        one = Evaluation(result, tuple(load_jsonl(ref.file(io.PREDICTIONS), Prediction)))
        if one.key in loaded:
            raise EvaluationError(f"the evaluation {' '.join(one.key)} is given twice; give it once")
        loaded[one.key] = one
    if not loaded:
        raise EvaluationError(f"nothing to analyse: expected evaluations with {io.PREDICTIONS}, found none")
    return list(loaded.values())


def mode_of(prediction: Prediction) -> str:
    """Which kind of question it was, within its evaluation; empty if there is one kind only."""
    return prediction.tags.get("mode", "")


def distribution(prediction: Prediction) -> tuple[float, ...]:
    """How the model's belief was spread over the options; sums to 1. Log-odds are compared by softmax."""
    return softmax(prediction.scores) if prediction.scores else prediction.probabilities
