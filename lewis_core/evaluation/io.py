"""What evaluations read and write: who is asked about, which photos are put, predictions and numbers on disk."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lewis_core.artifacts import ArtifactRef
from lewis_core.config.evaluation import StatisticsConfig
from lewis_core.errors import EvaluationError
from lewis_core.evaluation.records import EvaluationName, EvaluationResult, Metric, Prediction
from lewis_core.evaluation.verdict import judge
from lewis_core.records import (
    Catalog,
    Concept,
    Database,
    DatabaseEntry,
    ImageRecord,
    JsonObject,
    load_record,
    save_jsonl,
    save_record,
)
from lewis_core.seeding import stable_rng

logger = logging.getLogger(__name__)
Facts = Mapping[str, dict[str, str]]
"""What is true of each photo, by path, where the data set knows it."""
FACTS = "facts.json"
PREDICTIONS, CONTROLS, METRICS = "predictions.jsonl", "controls.jsonl", "metrics.json"
NO_DESCRIPTION = "no description: "
"""Beginning of the error of items that failed because the speaker's text could not be read."""
ASKED_ONLY = "answered items only"
"""Note of numbers that leave out what could not be asked."""
NOT_DESCRIBED = "No description."
"""Offered in place of a missing description where another concept's must stay among the options."""


@dataclass(frozen=True)
class Subject:
    """One concept that a database describes, and the photos that questions about it may show."""

    concept: Concept
    entry: DatabaseEntry
    photos: tuple[ImageRecord, ...]
    """Never the reference photo, nor a copy of it; sorted by path."""

    @property
    def id(self) -> str:
        """The concept's id."""
        return self.concept.id

    @cached_property
    def digests(self) -> frozenset[str]:
        """Digests of all photos of the concept, those included that no question shows."""
        return frozenset(photo.sha256 for photo in (*self.concept.train, *self.concept.test))

    @property
    def failure(self) -> str | None:
        """Why nothing can be asked from its description, or ``None`` when it has one."""
        if any(letter.isalnum() for letter in self.entry.text):
            return None
        return NO_DESCRIPTION + (self.entry.error or "the speaker wrote nothing")

    @property
    def option_text(self) -> str:
        """Its description, or a neutral stand-in."""
        return self.entry.text if self.failure is None else NOT_DESCRIBED


def load_subjects(database: ArtifactRef, catalog: ArtifactRef) -> tuple[str, list[Subject]]:
    """Read a database and the photos of its concepts.

    Returns:
        The speaker's name, and the concepts in the database's order.

    Raises:
        EvaluationError: If they do not belong together, or no concept can be asked about.
    """
    loaded = load_record(database.file("database.json"), Database)
    subjects = build_subjects(loaded, load_record(catalog.file("catalog.json"), Catalog))
    return loaded.speaker, subjects


def build_subjects(database: Database, catalog: Catalog) -> list[Subject]:
    """Join a database with its catalog.

    Raises:
        EvaluationError: If they do not belong together, or no concept can be asked about.
    """
    subjects = []
    if double := [name for name, count in Counter(entry.concept for entry in database.entries).items() if count > 1]:
        raise EvaluationError(
            f"the database describes {double[0]!r} twice ({len(double)} such concepts); keep one entry for each"
        )
    concepts = {concept.id: concept for concept in catalog.concepts}
    for entry in database.entries:
        concept = concepts.get(entry.concept)
        if concept is None:
            raise EvaluationError(
                f"the database describes {entry.concept!r}, which the catalog does not hold; describe the concepts of "
                "this very catalog"
            )
        if entry.reference.sha256 not in {photo.sha256 for photo in (*concept.train, *concept.test)}:
            raise EvaluationError(
                f"the database was made from another catalog: {entry.reference.path} is no photo of {entry.concept!r} "
                "in this one, or was changed; describe the concepts of this very catalog"
            )
        subjects.append(Subject(concept, entry, query_photos(concept, entry.reference)))
    if silent := [subject.id for subject in subjects if not subject.photos]:
        logger.warning(
            "%d concepts have no photo but their reference, nothing is asked about them: %s", len(silent), silent[:5]
        )
    if len(silent) == len(subjects):
        raise EvaluationError(
            f"nothing to ask: expected concepts with a photo beside the reference, found none among {len(subjects)}; "
            "add test photos"
        )
    return subjects


def query_photos(concept: Concept, reference: ImageRecord) -> tuple[ImageRecord, ...]:
    """Photos that a description is tested on: the test photos, or the other training photos if there are none."""
    for photos in (concept.test, concept.train):
        distinct = {photo.sha256: photo for photo in sorted(photos, key=lambda photo: photo.path, reverse=True)}
        distinct.pop(reference.sha256, None)
        if distinct:
            return tuple(sorted(distinct.values(), key=lambda photo: photo.path))
    return ()


def without_owners(subjects: Sequence[Subject], photo: ImageRecord, but: Subject) -> list[Subject]:
    """Leave out concepts that have the same picture: their descriptions are not wrong about it.

    Args:
        subjects: Concepts to choose from.
        photo: The picture.
        but: The concept that is asked about; it stays.
    """
    return [subject for subject in subjects if subject.id == but.id or photo.sha256 not in subject.digests]


def draw_photos(subject: Subject, count: int | None, seed: int, purpose: str) -> tuple[ImageRecord, ...]:
    """Draw photos of a concept without repetition; all of them, in order, when ``count`` is ``None`` or too large."""
    if count is None or count >= len(subject.photos):
        return subject.photos
    rng = stable_rng(seed, purpose, "photos", subject.id)
    chosen = rng.choice(len(subject.photos), size=count, replace=False)
    return tuple(subject.photos[index] for index in sorted(int(i) for i in chosen))


def load_facts(catalog: ArtifactRef) -> Facts | None:
    """Read what is known to be true of the photos; ``None`` when the data set does not say.

    Raises:
        DataError: If ``facts.json`` does not have the promised shape.
    """
    if not (catalog.path / FACTS).is_file():
        return None
    from lewis_core.pocket import truth

    return truth.load_facts(catalog.path)


def facts_of(facts: Facts, photo: ImageRecord) -> dict[str, str]:
    """Look up what is true of a photo.

    Raises:
        EvaluationError: If nothing is known about it.
    """
    if photo.path not in facts:
        raise EvaluationError(f"{FACTS} says nothing about {photo.path}; render the photos and the file together")
    return facts[photo.path]


def by_category(subjects: Sequence[Subject]) -> dict[str, list[Subject]]:
    """Group concepts by category; each group sorted by id."""
    groups: dict[str, list[Subject]] = {}
    for subject in sorted(subjects, key=lambda subject: subject.id):
        groups.setdefault(subject.concept.category, []).append(subject)
    return groups


def save_evaluation(
    output_dir: Path,
    evaluation: EvaluationName,
    speaker: str,
    answering: str,
    predictions: Sequence[Prediction],
    metrics: Sequence[Metric],
    statistics: StatisticsConfig,
    controls: Sequence[Prediction] = (),
) -> JsonObject:
    """Write predictions and numbers; control arms go to a file of their own.

    Returns:
        Summary for the manifest: counts, and each number under ``metrics``.

    Raises:
        EvaluationError: If there are no predictions, or two have the same id.
    """
    if not predictions:
        raise EvaluationError(
            f"{evaluation}: no item could be made; expected at least one question, check the settings"
        )
    if len({prediction.item for prediction in predictions}) != len(predictions):
        raise EvaluationError(f"{evaluation}: item ids are not unique, so speakers cannot be paired on them")
    failed = sum(prediction.error is not None for prediction in predictions)
    judgement = judge(evaluation, predictions, controls, statistics)
    for warning in judgement.warnings:
        logger.warning("%s of %s: %s", evaluation, speaker, warning)
    result = EvaluationResult(
        evaluation=evaluation,
        speaker=speaker,
        answering=answering,
        metrics=tuple(metrics),
        invalid=sum(prediction.answered is None and prediction.error is None for prediction in predictions),
        failed=failed,
        concepts=len({prediction.concept for prediction in predictions}),
        verdict=judgement.verdict,
        warnings=judgement.warnings,
    )
    save_jsonl(output_dir / PREDICTIONS, predictions)
    if controls:
        save_jsonl(output_dir / CONTROLS, controls)
    save_record(output_dir / METRICS, result)
    return summary(result, len(predictions))


def summary(result: EvaluationResult, num_items: int) -> JsonObject:
    """Small facts about an evaluation for its manifest."""
    return {
        "evaluation": result.evaluation,
        "speaker": result.speaker,
        "answering": result.answering,
        "items": num_items,
        "concepts": result.concepts,
        "invalid": result.invalid,
        "failed": result.failed,
        "verdict": result.verdict,
        "warnings": list(result.warnings),
        "metrics": {metric.name: metric.value for metric in result.metrics},
    }


def numbers(metrics: Sequence[Metric]) -> Mapping[str, float]:
    """Measured values by name, for a reporter."""
    return {metric.name: metric.value for metric in metrics if metric.value is not None}
