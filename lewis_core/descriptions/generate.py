"""A speaker describes one reference photo of each concept; the texts become its personal database."""

import logging
from collections.abc import Sequence
from pathlib import Path

from lewis_core.artifacts import ArtifactRef
from lewis_core.config.base import ModelRef, Runtime
from lewis_core.config.evaluation import DescribeConfig
from lewis_core.descriptions.parse import parse_description
from lewis_core.errors import DataError, DescriptionError
from lewis_core.listener.schemas import GenerateItem
from lewis_core.models.protocol import AnsweringModel
from lewis_core.prompts import PromptSet, prompt_set
from lewis_core.records import (
    Catalog,
    Concept,
    Database,
    DatabaseEntry,
    Description,
    ImageRecord,
    JsonObject,
    Splits,
    load_record,
    save_record,
)
from lewis_core.reporting import NullReporter, Reporter, track
from lewis_core.seeding import stable_rng, stable_seed

logger = logging.getLogger(__name__)


def describe_concepts(
    catalog: ArtifactRef,
    splits: ArtifactRef,
    speaker: str,
    model: ModelRef,
    output_dir: Path,
    config: DescribeConfig,
    data_root: Path,
    runtime: Runtime,
    reporter: Reporter,
) -> JsonObject:
    """Let a speaker describe concepts; writes ``database.json``.

    Args:
        catalog: Artifact of ``build-catalog``.
        splits: Artifact of ``split-concepts``.
        speaker: The speaker's name in tables.
        model: The speaker.
        output_dir: Folder to write to.
        config: Which concepts and reference photos, decoding.
        data_root: Folder that image paths are relative to.
        runtime: Device, batch size.
        reporter: Receives progress, a table of the texts and the format rate.

    Returns:
        Counts: concepts described, malformed texts, and the ids of concepts that have no photo to describe.

    Raises:
        DataError: If no concept can be described.
        ModelError: If the model cannot be loaded.
    """
    from lewis_core.models.vlm import open_model

    concepts = choose_concepts(
        load_record(catalog.file("catalog.json"), Catalog), load_record(splits.file("splits.json"), Splits), config
    )
    described = [concept for concept in concepts if concept.train]
    without_photo = [concept.id for concept in concepts if not concept.train]
    if without_photo:
        logger.warning("%d concepts have no training photo to describe: %s", len(without_photo), without_photo[:5])
    answering = open_model(model, runtime, data_root)
    database = describe(described, speaker, answering, prompt_set(model.prompts), config, runtime.batch_size, reporter)
    save_record(output_dir / "database.json", database)
    malformed = sum(entry.description is None for entry in database.entries)
    reporter.log_metrics({"format_rate": 1 - malformed / len(database.entries)})
    reporter.log_table("descriptions", [_row(entry) for entry in database.entries])
    return {
        "speaker": speaker,
        "concepts": len(database.entries),
        "malformed": malformed,
        "without_photo": without_photo,
    }


def choose_concepts(catalog: Catalog, splits: Splits, config: DescribeConfig) -> tuple[Concept, ...]:
    """Choose which concepts are described: the held-out ones, those that are trained on, or all.

    Raises:
        DataError: If the catalog lacks a held-out concept, or there is nothing to describe.
    """
    if config.concepts == "all":
        chosen = catalog.concepts
    else:
        wanted = splits.training if config.concepts == "training" else splits.held_out
        chosen = tuple(catalog.concept(concept) for concept in wanted)
    if not any(concept.train for concept in chosen):
        raise DataError(
            f"nothing to describe: expected {config.concepts} concepts with training photos, found {len(chosen)} "
            "concepts without any; hold out fewer or add photos"
        )
    return chosen


def choose_reference(concept: Concept, config: DescribeConfig) -> ImageRecord:
    """Choose the photo of a concept that is described: its first by path, or one drawn by seed.

    Args:
        concept: A concept with training photos.
        config: How to choose.
    """
    photos = sorted(concept.train, key=lambda photo: photo.path)
    if config.reference == "first":
        return photos[0]
    return photos[int(stable_rng(config.seed, "reference", concept.id).integers(len(photos)))]


def describe(
    concepts: Sequence[Concept],
    speaker: str,
    model: AnsweringModel,
    prompts: PromptSet,
    config: DescribeConfig,
    batch_size: int = 64,
    reporter: Reporter | None = None,
) -> Database:
    """Let a model describe the reference photo of each concept.

    Args:
        concepts: Concepts with training photos.
        speaker: The speaker's name in tables.
        model: The speaker.
        prompts: Wording of the request; it holds the category word and nothing else about the concept.
        config: Reference photos and decoding.
        batch_size: Photos of one call.
        reporter: Receives progress.

    Returns:
        Entries sorted by concept id; a text that does not follow the format stays, with the reason.
    """
    ordered = sorted(concepts, key=lambda concept: concept.id)
    items = [
        GenerateItem(
            image=choose_reference(concept, config).path,
            prompt=prompts.speaker(concept.category_word),
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            seed=stable_seed(config.seed, "describe", concept.id) % 2**31,
        )
        for concept in ordered
    ]
    ticks = track(range(len(items)), len(items), "descriptions", reporter or NullReporter())
    completions: list[str] = []
    for start in range(0, len(items), batch_size):
        for written in model.generate(items[start : start + batch_size]):
            completions.append(written[0])
            next(ticks)
    next(ticks, None)
    return Database(
        speaker=speaker,
        entries=tuple(_entry(concept, text, config) for concept, text in zip(ordered, completions, strict=True)),
    )


def _entry(concept: Concept, completion: str, config: DescribeConfig) -> DatabaseEntry:
    """Record what was written about a concept."""
    description, error = _parse(completion)
    return DatabaseEntry(
        concept=concept.id,
        category=concept.category,
        category_word=concept.category_word,
        reference=choose_reference(concept, config),
        completion=completion,
        description=description,
        error=error,
    )


def _parse(completion: str) -> tuple[Description | None, str | None]:
    """Read a completion: its description, or why there is none."""
    try:
        return parse_description(completion), None
    except DescriptionError as error:
        return None, str(error)


def _row(entry: DatabaseEntry) -> dict[str, object]:
    return {"concept": entry.concept, "text": entry.text, "error": entry.error, "completion": entry.completion}
