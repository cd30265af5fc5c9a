"""The game on held-out concepts: does a listener find the thing from the words?

For every described concept the target is another photo than the described one; the distractors are the nearest
look-alikes of the category. The listener reads nothing but the description. Who plays does not depend on the speaker:
concepts, targets, distractors and their order are the same for all speakers, so that speakers can be paired.

A concept without a readable description cannot be played. It is counted apart as failed and is wrong in every number,
so that nobody wins by silence, but in those that end in ``_described``, where it is left out.

Where the truth about the photos is known (``facts.json`` of a pocket world), the same rounds are also played with a
reader that looks sentences up instead of feeling them. A speaker that has learnt to charm its listener fails there.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lewis_core.artifacts import ArtifactRef, digest_json
from lewis_core.config.base import ModelRef
from lewis_core.config.evaluation import GameEvaluationConfig, StatisticsConfig
from lewis_core.errors import EvaluationError
from lewis_core.evaluation import asking, io
from lewis_core.evaluation.blocks import Refused
from lewis_core.evaluation.io import Subject
from lewis_core.evaluation.metrics import softmax
from lewis_core.evaluation.records import Metric, Prediction
from lewis_core.evaluation.statistics import Measure, mean_measure, summarise
from lewis_core.listener.schemas import GameScores, ScoreGame
from lewis_core.models.protocol import AnsweringModel
from lewis_core.records import ImageRecord, JsonObject
from lewis_core.reporting import NullReporter, Reporter
from lewis_core.retrieval.vectors import DECIMALS, Matrix, load_embeddings
from lewis_core.seeding import stable_rng

logger = logging.getLogger(__name__)
EXACT_READER = "exact_reader"
"""Tag: which candidate an exact reader would have chosen."""


class Round(NamedTuple):
    """One round: the described concept, and what the listener sees."""

    subject: Subject
    candidates: tuple[ImageRecord, ...]
    candidate_concepts: tuple[str, ...]
    target_index: int

    @property
    def item(self) -> str:
        """Stable id: the same photos in the same order have the same id."""
        content = [self.subject.entry.reference.sha256, [photo.sha256 for photo in self.candidates], self.target_index]
        return f"{self.subject.id}#{digest_json(content)[:12]}"


def play_games(
    database: ArtifactRef,
    catalog: ArtifactRef,
    embeddings: ArtifactRef,
    answering_name: str,
    answering: ModelRef,
    output_dir: Path,
    config: GameEvaluationConfig,
    statistics: StatisticsConfig,
    service_url: str,
    work_dir: Path,
    reporter: Reporter,
) -> JsonObject:
    """Play the game with a speaker's database against a listener.

    Args:
        database: Artifact of ``describe-concepts``.
        catalog: Artifact of ``build-catalog``.
        embeddings: Artifact of ``embed-images``.
        answering_name: Who listens, in tables: ``listener`` or ``independent``.
        answering: The listener; the service at ``service_url`` runs it.
        output_dir: Receives ``predictions.jsonl`` and ``metrics.json``.
        config: Candidates, rounds, seed.
        statistics: Intervals.
        service_url: Address of the model service.
        work_dir: Keeps answers until all are there.
        reporter: Receives progress and metrics.

    Returns:
        Counts and numbers.

    Raises:
        EvaluationError: If the artifacts do not belong together or no round can be played.
        ListenerError: If the service does not answer.
    """
    del answering  # part of the stage's identity; the service already runs it
    speaker, subjects = io.load_subjects(database, catalog)
    rounds = build_rounds(subjects, *load_embeddings(embeddings), config)
    facts = io.load_facts(catalog)
    with asking.connect(service_url, work_dir) as model:
        predictions = play_rounds(rounds, model, reporter)
    if facts is not None:
        predictions = [read_exactly(round_, p, facts) for round_, p in zip(rounds, predictions, strict=True)]
    metrics = aggregate(predictions, statistics)
    reporter.log_metrics(io.numbers(metrics))
    return io.save_evaluation(output_dir, "game", speaker, answering_name, predictions, metrics, statistics)


def build_rounds(
    subjects: Sequence[Subject], matrix: Matrix, rows: Mapping[str, int], config: GameEvaluationConfig
) -> list[Round]:
    """Choose targets and distractors.

    Args:
        subjects: Described concepts.
        matrix: Embeddings of images, shape ``(N, D)``, L2-normalised.
        rows: Row of each image by sha256.
        config: Candidates, rounds, seed.

    Raises:
        EvaluationError: If a photo has no embedding, or no concept has a look-alike.
    """
    groups = io.by_category(subjects)
    rounds = []
    for subject in sorted(subjects, key=lambda subject: subject.id):
        others = [other for other in groups[subject.concept.category] if other.id != subject.id and other.photos]
        if not others or not subject.photos:
            logger.warning("%s is not played: it has no look-alike or no second photo", subject.id)
            continue
        distractors = nearest_photos(subject, others, matrix, rows)[: config.num_candidates - 1]
        if not distractors:
            logger.warning("%s is not played: its look-alikes have no picture that it does not have", subject.id)
            continue
        for target in _draw_targets(subject, config):
            rounds.append(_shuffle(subject, target, distractors, config.seed))
    if not rounds:
        raise EvaluationError(
            "no game can be played: expected a category with two described concepts that have test photos"
        )
    return rounds


def nearest_photos(
    subject: Subject, others: Sequence[Subject], matrix: Matrix, rows: Mapping[str, int]
) -> list[tuple[str, ImageRecord]]:
    """Take each other concept's photo that looks most like the reference, nearest concepts first; ties by id.

    Pictures that the subject has as well are no distractors: the words are right about them.

    Returns:
        Concept id and photo; nothing of concepts that have no picture of their own.

    Raises:
        EvaluationError: If a photo has no embedding.
    """
    reference = matrix[_row(rows, subject.entry.reference)].astype(np.float64)
    found = []
    for other in others:
        photos = [photo for photo in other.photos if photo.sha256 not in subject.digests]
        if not photos:
            continue
        vectors = matrix[[_row(rows, photo) for photo in photos]].astype(np.float64)
        similarity = np.round(vectors @ reference, DECIMALS)
        best = int(similarity.argmax())
        found.append((-float(similarity[best]), other.id, photos[best]))
    return [(concept, photo) for _, concept, photo in sorted(found, key=lambda entry: entry[:2])]


def _row(rows: Mapping[str, int], photo: ImageRecord) -> int:
    if photo.sha256 not in rows:
        raise EvaluationError(f"{photo.path} has no embedding; embed the images of this very catalog")
    return rows[photo.sha256]


def _draw_targets(subject: Subject, config: GameEvaluationConfig) -> list[ImageRecord]:
    """Draw a different target for each round, as many as there are photos at most."""
    order = stable_rng(config.seed, "game-targets", subject.id).permutation(len(subject.photos))
    return [subject.photos[index] for index in order[: config.rounds_per_concept]]


def _shuffle(subject: Subject, target: ImageRecord, distractors: Sequence[tuple[str, ImageRecord]], seed: int) -> Round:
    """Put target and distractors in random order."""
    shown = [(subject.id, target), *distractors]
    order = [int(index) for index in stable_rng(seed, "game-order", subject.id, target.sha256).permutation(len(shown))]
    return Round(
        subject,
        tuple(shown[index][1] for index in order),
        tuple(shown[index][0] for index in order),
        order.index(0),
    )


def play_rounds(rounds: Sequence[Round], model: AnsweringModel, reporter: Reporter | None = None) -> list[Prediction]:
    """Let the listener answer all rounds that have a description; the others fail."""
    playable = [round_ for round_ in rounds if round_.subject.failure is None]
    games = [
        ScoreGame(
            candidates=tuple(photo.path for photo in round_.candidates),
            descriptions=(round_.subject.entry.text,),
            category=round_.subject.entry.category_word,
        )
        for round_ in playable
    ]
    scores = iter(asking.score_all(model, games, reporter or NullReporter()))
    return [_predict(round_, None if round_.subject.failure else next(scores)) for round_ in rounds]


def _predict(round_: Round, scores: GameScores | Refused | None) -> Prediction:
    """Record a round; the best candidate by log-odds is the answer."""
    prediction = Prediction(
        item=round_.item,
        concept=round_.subject.id,
        category=round_.subject.concept.category,
        image=round_.candidates[round_.target_index].path,
        options=tuple(photo.path for photo in round_.candidates),
        expected=round_.target_index,
        answered=None,
        error=round_.subject.failure,
    )
    if scores is None:
        return prediction
    if isinstance(scores, Refused):
        return asking.record_refusal(prediction, scores)
    log_odds = scores.yes_log_odds[0]
    return prediction.model_copy(
        update={
            "answered": asking.pick(log_odds, round_.target_index),
            "probabilities": scores.yes_probability[0],
            "scores": log_odds,
            "captured_mass": sum(scores.captured_mass[0]) / len(log_odds),
        }
    )


def read_exactly(round_: Round, prediction: Prediction, facts: io.Facts) -> Prediction:
    """Tag a prediction with what an exact reader of the description would have chosen; ties are against the speaker."""
    from lewis_core.pocket.truth import exact_reader_scores

    description = round_.subject.entry.description
    if description is None:
        return prediction
    known = [io.facts_of(facts, photo) for photo in round_.candidates]
    chosen = asking.pick(exact_reader_scores(description.detailed, known), round_.target_index)
    return prediction.model_copy(update={"tags": {**prediction.tags, EXACT_READER: str(chosen)}})


def is_strictly_correct(prediction: Prediction) -> bool:
    """Whether every yes or no is right: yes for the target, no for every distractor; even odds are wrong."""
    return all(
        score > 0 if index == prediction.expected else score < 0 for index, score in enumerate(prediction.scores)
    )


def accuracy(predictions: Sequence[Prediction]) -> Measure:
    """Share of rounds won; rounds without a description are lost."""
    return mean_measure([(prediction.concept, float(prediction.is_correct)) for prediction in predictions])


def aggregate(predictions: Sequence[Prediction], config: StatisticsConfig) -> tuple[Metric, ...]:
    """Turn rounds into numbers with intervals."""
    played = [prediction for prediction in predictions if prediction.error is None]
    strict = {prediction.item for prediction in played if is_strictly_correct(prediction)}

    def target(values: Sequence[float], prediction: Prediction) -> float:
        return values[prediction.expected or 0]

    measures = {
        "accuracy": accuracy(predictions),
        "accuracy_described": accuracy(played),
        "strict_accuracy": mean_measure([(p.concept, float(p.item in strict)) for p in predictions]),
        "target_yes_probability": mean_measure([(p.concept, target(p.probabilities, p)) for p in played]),
        "posterior": mean_measure([(p.concept, target(softmax(p.scores), p)) for p in played]),
        "captured_mass": mean_measure([(p.concept, p.captured_mass or 0.0) for p in played]),
    }
    if any(EXACT_READER in p.tags for p in predictions):
        right = [(p.concept, float(p.tags.get(EXACT_READER) == str(p.expected))) for p in predictions]
        measures["exact_reader_accuracy"] = mean_measure(right)
    chance = sum(1 / len(prediction.options) for prediction in predictions) / max(len(predictions), 1)
    notes = {
        "accuracy": f"chance {chance:.2f}; {len(predictions) - len(played)} could not be asked and count as wrong",
        "accuracy_described": f"chance {chance:.2f}; {io.ASKED_ONLY}",
        "strict_accuracy": "yes for the target and no for every distractor",
        "target_yes_probability": "mean P(yes | target)",
        "posterior": f"softmax of log-odds over candidates, at the target; chance {chance:.2f}",
        "exact_reader_accuracy": "the same rounds, read sentence by sentence against the truth; no model to please",
        "captured_mass": "share of the listener's probability on yes and no",
    }
    return summarise(measures, config, notes)
