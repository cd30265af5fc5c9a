"""The game among few and among many: does a listener find the thing among 3, 10, 30 candidates, and another one too?

Bags are nested. The greatest holds the target, the nearest look-alikes of its category, one photo of each concept, and
then the nearest of other categories; a smaller one holds the nearest of these. So every pair is scored once, the
difference between two sizes is not the luck of the draw, and the target stays the same. The listener answers for each
candidate by itself, so their order does not matter; ties are against the speaker.

:func:`compare_listeners` puts two listeners side by side: a speaker that pleases the listener it was trained with, and
nobody else, has a large gap.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lewis_core.artifacts import ArtifactRef
from lewis_core.config.analyses import BagsConfig
from lewis_core.config.base import ModelRef
from lewis_core.config.evaluation import StatisticsConfig
from lewis_core.errors import EvaluationError
from lewis_core.evaluation import asking, io
from lewis_core.evaluation.blocks import Refused
from lewis_core.evaluation.game import nearest_photos
from lewis_core.evaluation.io import Subject
from lewis_core.evaluation.metrics import rank_of
from lewis_core.evaluation.records import Metric
from lewis_core.evaluation.statistics import Measure, compare_measures, mean_measure, summarise
from lewis_core.listener.schemas import GameScores, ScoreGame
from lewis_core.models.protocol import AnsweringModel
from lewis_core.records import ImageRecord, JsonObject, Record, load_jsonl, load_record, save_jsonl, save_record
from lewis_core.reporting import NullReporter, Reporter
from lewis_core.retrieval.vectors import Matrix, load_embeddings
from lewis_core.seeding import stable_rng

logger = logging.getLogger(__name__)
ROUNDS, FILE, CROSS = "rounds.jsonl", "bags.json", "cross_listener.json"


class Bag(NamedTuple):
    """A target and its distractors, nearest first."""

    subject: Subject
    target: ImageRecord
    distractors: tuple[ImageRecord, ...]


class BagRound(Record):
    """One bag, scored; a line of ``rounds.jsonl``."""

    item: str
    """Stable id; equal for two speakers or listeners with the same photos."""
    concept: str
    candidates: tuple[str, ...]
    """Photos; the target first, then distractors from the nearest on."""
    scores: tuple[float, ...] = ()
    """Log-odds of yes for each; none if there is no description."""
    error: str | None = None
    """Why the bag could not be played."""

    def is_found(self, size: int) -> bool:
        """Whether the target has the highest log-odds in the bag of that size; without a description it has not."""
        return bool(self.scores) and rank_of(self.scores[:size], 0) == 1


class BagResult(Record):
    """One speaker and one listener; ``bags.json``."""

    speaker: str
    answering: str
    sizes: tuple[int, ...]
    rounds: int
    failed: int
    """Rounds without a description; they are lost in every number."""
    metrics: tuple[Metric, ...]
    """``success_at_<size>`` and ``mean_rank`` of the target among all."""


class ListenerGap(Record):
    """One size, two listeners, one speaker."""

    size: int
    listener: float
    other: float
    gap: float
    """``listener - other``: what is lost with a listener that was not trained with."""
    low: float
    high: float
    p_value: float
    agreement: float
    """Share of rounds in which both find the target or both do not."""


class CrossListener(Record):
    """Listeners side by side; ``cross_listener.json``."""

    speaker: str
    listener: str
    other: str
    gaps: tuple[ListenerGap, ...]


def play_bags(
    database: ArtifactRef,
    catalog: ArtifactRef,
    embeddings: ArtifactRef,
    answering_name: str,
    answering: ModelRef,
    output_dir: Path,
    config: BagsConfig,
    statistics: StatisticsConfig,
    service_url: str,
    work_dir: Path,
    reporter: Reporter,
) -> JsonObject:
    """Play the game with bags of several sizes.

    Args:
        database: Artifact of ``describe-concepts``.
        catalog: Artifact of ``build-catalog``.
        embeddings: Artifact of ``embed-images``.
        answering_name: Who listens, in tables.
        answering: The listener; the service at ``service_url`` runs it.
        output_dir: Receives ``rounds.jsonl`` and ``bags.json``.
        config: Sizes, rounds, seed.
        statistics: Intervals.
        service_url: Address of the model service.
        work_dir: Keeps answers until all are there.
        reporter: Receives progress and metrics.

    Returns:
        Names and numbers.

    Raises:
        EvaluationError: If the artifacts do not belong together, or no bag can be filled.
        ListenerError: If the service does not answer.
    """
    del answering  # part of the stage's identity; the service already runs it
    speaker, subjects = io.load_subjects(database, catalog)
    bags = build_bags(subjects, *load_embeddings(embeddings), config)
    if unfilled := [size for size in config.sizes if all(len(bag.distractors) + 1 < size for bag in bags)]:
        logger.warning("no bag of %s can be filled: only %d concepts can be shown", unfilled, len(subjects))
    with asking.connect(service_url, work_dir) as model:
        rounds = score_bags(bags, model, reporter)
    result = BagResult(
        speaker=speaker,
        answering=answering_name,
        sizes=config.sizes,
        rounds=len(rounds),
        failed=sum(one.error is not None for one in rounds),
        metrics=aggregate(rounds, config.sizes, statistics),
    )
    save_jsonl(output_dir / ROUNDS, rounds)
    save_record(output_dir / FILE, result)
    reporter.log_metrics(io.numbers(result.metrics))
    return {
        "speaker": speaker,
        "answering": answering_name,
        "rounds": len(rounds),
        "failed": result.failed,
        "metrics": {metric.name: metric.value for metric in result.metrics},
    }


def build_bags(subjects: Sequence[Subject], matrix: Matrix, rows: Mapping[str, int], config: BagsConfig) -> list[Bag]:
    """Choose targets and distractors; which they are does not depend on the descriptions.

    Args:
        subjects: Described concepts.
        matrix: Embeddings of images, shape ``(N, D)``, L2-normalised.
        rows: Row of each image by sha256.
        config: Sizes, rounds, seed.

    Raises:
        EvaluationError: If a photo has no embedding, or the smallest bag cannot be filled for any concept.
    """
    bags = []
    for subject in sorted((s for s in subjects if s.photos), key=lambda subject: subject.id):
        others = [other for other in subjects if other.id != subject.id and other.photos]
        near = [other for other in others if other.concept.category == subject.concept.category]
        far = [other for other in others if other.concept.category != subject.concept.category]
        found = [*nearest_photos(subject, near, matrix, rows), *nearest_photos(subject, far, matrix, rows)]
        distractors = tuple(photo for _, photo in found[: config.sizes[-1] - 1])
        if len(distractors) < config.sizes[0] - 1:
            continue
        order = stable_rng(config.seed, "bags", subject.id).permutation(len(subject.photos))
        bags += [Bag(subject, subject.photos[i], distractors) for i in order[: config.rounds_per_concept]]
    if not bags:
        raise EvaluationError(
            f"no bag of {config.sizes[0]} can be filled: expected as many described concepts with photos, found "
            f"{sum(bool(subject.photos) for subject in subjects)}"
        )
    return bags


def score_bags(bags: Sequence[Bag], model: AnsweringModel, reporter: Reporter | None = None) -> list[BagRound]:
    """Let a listener score every candidate of every bag that has a description."""
    playable = [bag for bag in bags if bag.subject.failure is None]
    games = [
        ScoreGame(
            candidates=_paths(bag), descriptions=(bag.subject.entry.text,), category=bag.subject.entry.category_word
        )
        for bag in playable
    ]
    scores = iter(asking.score_all(model, games, reporter or NullReporter()))
    return [_record(bag, None if bag.subject.failure else next(scores)) for bag in bags]


def _record(bag: Bag, scores: GameScores | Refused | None) -> BagRound:
    """Record a round; what could not be asked has no scores."""
    refused = asking.NOT_ANSWERED + scores.reason if isinstance(scores, Refused) else None
    return BagRound(
        item=f"{bag.subject.id}|{bag.target.path}",
        concept=bag.subject.id,
        candidates=_paths(bag),
        scores=scores.yes_log_odds[0] if isinstance(scores, GameScores) else (),
        error=bag.subject.failure or refused,
    )


def _paths(bag: Bag) -> tuple[str, ...]:
    return (bag.target.path, *(photo.path for photo in bag.distractors))


def success(rounds: Sequence[BagRound], size: int) -> Measure:
    """Share of bags of a size in which the target is found; bags that cannot be filled are left out."""
    return mean_measure([(one.concept, float(one.is_found(size))) for one in rounds if len(one.candidates) >= size])


def aggregate(rounds: Sequence[BagRound], sizes: Sequence[int], statistics: StatisticsConfig) -> tuple[Metric, ...]:
    """Turn rounds into numbers with intervals."""
    played = [one for one in rounds if one.scores]
    measures = {f"success_at_{size}": success(rounds, size) for size in sizes}
    notes = {f"success_at_{size}": f"found among {size}; chance {1 / size:.2f}" for size in sizes}
    for size in sizes:
        if short := sum(len(one.candidates) < size for one in rounds):
            notes[f"success_at_{size}"] += f"; {short} rounds have too few concepts for it"
    measures["mean_rank"] = mean_measure([(one.concept, float(rank_of(one.scores, 0))) for one in played])
    notes["mean_rank"] = "of the target among all candidates, 1 is best; described concepts only"
    return summarise(measures, statistics, notes)


def compare_listeners(
    listener: ArtifactRef, other: ArtifactRef, output_dir: Path, statistics: StatisticsConfig
) -> JsonObject:
    """Compare how well two listeners understand a speaker, on the same bags.

    Args:
        listener: Artifact of ``play-bags`` with the listener that the speaker was trained with.
        other: The same with another listener.
        output_dir: Receives ``cross_listener.json``.
        statistics: Intervals and tests.

    Returns:
        Names, and the gap by size.

    Raises:
        EvaluationError: If they are about different speakers or bags.
    """
    first, second = (load_record(ref.file(FILE), BagResult) for ref in (listener, other))
    mine, theirs = (load_jsonl(ref.file(ROUNDS), BagRound) for ref in (listener, other))
    keys = [[(one.item, one.candidates) for one in rounds] for rounds in (mine, theirs)]
    if first.speaker != second.speaker or keys[0] != keys[1]:
        raise EvaluationError(
            f"{first.speaker} with {first.answering} and {second.speaker} with {second.answering} did not play the "
            "same bags; play both with the same settings"
        )
    gaps = [gap for size in first.sizes if (gap := _gap(mine, theirs, size, statistics)) is not None]
    found = CrossListener(speaker=first.speaker, listener=first.answering, other=second.answering, gaps=tuple(gaps))
    (output_dir / CROSS).write_text(json.dumps(found.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
    return {"speaker": found.speaker, "gap": {str(gap.size): gap.gap for gap in gaps}}


def _gap(
    mine: Sequence[BagRound], theirs: Sequence[BagRound], size: int, statistics: StatisticsConfig
) -> ListenerGap | None:
    """Compare two listeners at one size; ``None`` if too few concepts fill such a bag."""
    result = compare_measures(success(theirs, size), success(mine, size), statistics)
    if result is None:
        return None
    same = [
        a.is_found(size) == b.is_found(size) for a, b in zip(mine, theirs, strict=True) if len(a.candidates) >= size
    ]
    return ListenerGap(
        size=size,
        listener=result.other,
        other=result.baseline,
        gap=result.difference,
        low=result.low,
        high=result.high,
        p_value=result.p_value,
        agreement=sum(same) / len(same),
    )
