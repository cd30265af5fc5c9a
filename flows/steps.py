"""The steps that flows are made of: prose over stages.

Steps are plain functions and not subflows, so that the UI shows one graph with every task and what it depends on.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from prefect.futures import PrefectFuture, wait

from lewis_core import pipeline
from lewis_core.artifacts import ArtifactRef, digest_file
from lewis_core.config.base import ModelRef
from lewis_core.config.data import FolderSource
from lewis_core.config.evaluation import SpeakerRef, VqaConfig
from lewis_core.config.pipeline import PrepareDataConfig
from lewis_core.data.layout import scan_tree
from lewis_core.errors import CatalogError
from lewis_core.evaluation.vqa import QUESTIONS, usable_items
from lewis_core.models.files import model_identity
from lewis_core.records import Catalog, Database, Splits, VqaItem, load_jsonl, load_record
from tasks.run import PipelineRun

logger = logging.getLogger(__name__)
BASE, TRAINED = "base", "trained"
LISTENER, INDEPENDENT = "listener", "independent"
DataT = TypeVar("DataT", bound=PrepareDataConfig)
"""Settings of a flow that reads photos."""


@dataclass(frozen=True)
class Photos:
    """The photos, read, split and embedded."""

    catalog: ArtifactRef
    splits: ArtifactRef
    embeddings: ArtifactRef


@dataclass(frozen=True)
class Evaluated:
    """One speaker's descriptions and what they are worth."""

    speaker: SpeakerRef
    database: ArtifactRef
    results: tuple[ArtifactRef, ...]


def locate_photos(run: PipelineRun[DataT]) -> str:
    """Find the photos, or render them; returns the fingerprint of their folder.

    Raises:
        CatalogError: If the folder is missing.
    """
    source = run.config.source
    if isinstance(source, FolderSource):
        run.data_root = source.root.expanduser().absolute()
        return scan_tree(run.data_root)
    photos = run.stage(pipeline.RENDER_PHOTOS, config=source.world)
    run.data_root = photos.path
    return photos.digest


def read_photos(run: PipelineRun[DataT]) -> Photos:
    """Photos → catalog, split of its concepts, CLIP embeddings."""
    config = run.config
    catalog = run.stage(pipeline.BUILD_CATALOG, fingerprint=locate_photos(run), config=config.catalog)
    splits = run.stage(pipeline.SPLIT_CONCEPTS, catalog=catalog, config=config.splits)
    embeddings = run.stage(
        pipeline.EMBED_IMAGES,
        catalog=catalog,
        config=config.encoder,
        with_negatives=config.mining.negatives_frac > 0,
    )
    return Photos(catalog, splits, embeddings)


def build_training_data(run: PipelineRun[DataT], photos: Photos) -> ArtifactRef:
    """Look-alikes of every training category → games → the data set that the speaker trains on."""
    training = run.config.training
    prompts = training.model.prompts if training else ModelRef.model_fields["prompts"].default
    games = training_games(run, photos)
    return run.stage(pipeline.BUILD_DATASET, games=games, prompts=prompts, config=run.config.dataset)


def training_games(run: PipelineRun[DataT], photos: Photos) -> ArtifactRef:
    """Games on the concepts that are trained on: mined, or those of another experiment."""
    return build_games(run, photos) if run.config.games.retrieval_list is None else import_games(run, photos)


def build_games(run: PipelineRun[DataT], photos: Photos) -> ArtifactRef:
    """Look-alikes of every training category → games."""
    config = run.config
    candidates = run.map(
        pipeline.MINE_DISTRACTORS,
        over="category",
        values=training_categories(photos),
        catalog=photos.catalog,
        splits=photos.splits,
        embeddings=photos.embeddings,
        config=config.mining,
    )
    return run.stage(pipeline.BUILD_GAMES, candidates=candidates, config=config.games)


def import_games(run: PipelineRun[DataT], photos: Photos) -> ArtifactRef:
    """Games of another experiment, from a file in the photos' folder.

    Raises:
        CatalogError: If the file is missing.
    """
    name = run.config.games.retrieval_list
    if run.data_root is None or name is None or not (run.data_root / name).is_file():
        raise CatalogError(f"games.retrieval_list: {run.data_root} holds no file {name!r}")
    return run.stage(
        pipeline.IMPORT_GAMES,
        catalog=photos.catalog,
        splits=photos.splits,
        fingerprint=digest_file(run.data_root / name),
        config=run.config.games,
    )


def training_categories(photos: Photos) -> list[str]:
    """Categories with concepts that are trained on, sorted."""
    catalog = load_record(photos.catalog.file("catalog.json"), Catalog)
    splits = load_record(photos.splits.file("splits.json"), Splits)
    return list(catalog.select(splits.training).categories)


def trained_folder(result: ArtifactRef) -> Path:
    """Folder of what a training made: an adapter, or a whole model."""
    model = result.path / "model"
    return model if model.is_dir() else result.path / "adapter"


def trained_model(base: ModelRef, result: ArtifactRef) -> ModelRef:
    """What a training made of a model: the model with an adapter, or another model."""
    folder = trained_folder(result)
    if folder.name == "model":
        return base.model_copy(update={"path": str(folder), "adapter": None})
    return base.model_copy(update={"adapter": folder})


def evaluation_models(run: PipelineRun) -> list[ModelRef]:
    """Models that answer in evaluations."""
    config = run.config.evaluation
    return [config.answering, *([config.independent] if config.independent else [])]


def speakers(run: PipelineRun, adapter: ArtifactRef | None) -> list[SpeakerRef]:
    """The base, the trained speaker if there is one, and those that the settings add."""
    base = run.config.training.model
    found = [SpeakerRef(name=BASE, model=base)]
    if adapter is not None:
        found.append(SpeakerRef(name=TRAINED, model=trained_model(base, adapter)))
    return [*found, *run.config.evaluation.speakers]


def describe(run: PipelineRun, photos: Photos, who: Sequence[SpeakerRef]) -> list[ArtifactRef]:
    """Let each speaker describe the reference photo of every held-out concept; one after the other, for memory."""
    return [describe_one(run, photos, speaker, speaker.name) for speaker in who]


def describe_one(run: PipelineRun, photos: Photos, speaker: SpeakerRef, label: str) -> ArtifactRef:
    """Let one speaker describe the reference photo of every held-out concept."""
    return run.stage(
        pipeline.DESCRIBE_CONCEPTS,
        label=label,
        catalog=photos.catalog,
        splits=photos.splits,
        speaker=speaker.name,
        model=speaker.model,
        config=run.config.describe,
    )


def evaluate(
    run: PipelineRun, photos: Photos, who: Sequence[SpeakerRef], databases: Sequence[ArtifactRef]
) -> list[Evaluated]:
    """Play the game on held-out concepts and answer the three evaluations from each speaker's database."""
    indexes = [
        run.submit(
            pipeline.INDEX_DATABASE,
            label=speaker.name,
            database=database,
            embeddings=photos.embeddings,
            config=run.config.encoder,
        )
        for speaker, database in zip(who, databases, strict=True)
    ]
    vqa = run.config.evaluation.vqa
    questions = vqa if vqa is not None and has_questions(photos, databases[0], vqa) else None
    started = [
        (speaker, database, submit_evaluations(run, photos, speaker.name, database, index.result(), questions))
        for speaker, database, index in zip(who, databases, indexes, strict=True)
    ]
    finished = [
        Evaluated(speaker, database, tuple(future.result() for future in futures))
        for speaker, database, futures in started
    ]
    run.stop_services()
    return finished


def evaluate_one(run: PipelineRun, photos: Photos, speaker: SpeakerRef, database: ArtifactRef, label: str) -> Evaluated:
    """Evaluate one speaker and leave the model services running; waits for all its evaluations, even if one fails.

    Raises:
        LewisError: What ended the first evaluation that failed.
    """
    index = run.stage(
        pipeline.INDEX_DATABASE,
        label=label,
        database=database,
        embeddings=photos.embeddings,
        config=run.config.encoder,
    )
    vqa = run.config.evaluation.vqa
    questions = vqa if vqa is not None and has_questions(photos, database, vqa) else None
    futures = submit_evaluations(run, photos, label, database, index, questions)
    wait(futures)
    return Evaluated(speaker, database, tuple(future.result() for future in futures))


def submit_evaluations(
    run: PipelineRun,
    photos: Photos,
    name: str,
    database: ArtifactRef,
    index: ArtifactRef,
    questions: VqaConfig | None,
) -> list[PrefectFuture[ArtifactRef]]:
    """Start all evaluations of one speaker; they run at the same time and share the model services."""
    config = run.config.evaluation
    common = {"database": database, "catalog": photos.catalog, "statistics": config.statistics}
    answering = {"answering": config.answering, **common}
    service = run.service(LISTENER, config.answering)
    listeners = [(LISTENER, config.answering), (INDEPENDENT, config.independent)]
    futures = [
        run.submit(
            pipeline.PLAY_GAMES,
            label=f"{name} {role}",
            service=run.service(role, ref),
            embeddings=photos.embeddings,
            answering_name=role,
            config=config.game,
            **common | {"answering": ref},
        )
        for role, ref in listeners
        if ref is not None
    ]
    futures += [
        run.submit(
            pipeline.EVALUATE_IDENTIFICATION,
            label=name,
            service=service,
            embeddings=photos.embeddings,
            index=index,
            config=config.identification,
            **answering,
        ),
        run.submit(pipeline.EVALUATE_RECOGNITION, label=name, service=service, config=config.recognition, **answering),
        run.submit(
            pipeline.EVALUATE_DESCRIPTIONS,
            label=name,
            database=database,
            catalog=photos.catalog,
            config=config.statistics,
        ),
    ]
    if questions is not None:
        futures.append(run.submit(pipeline.EVALUATE_VQA, label=name, service=service, config=questions, **answering))
    return futures


def has_questions(photos: Photos, database: ArtifactRef, config: VqaConfig) -> bool:
    """Whether any of the data set's questions can be asked; warns if not, since it is no reason to end the run."""
    path = photos.catalog.path / QUESTIONS
    if not path.is_file():
        logger.info("questions are left out: the photos came without any that can be used")
        return False
    items = load_jsonl(path, VqaItem)
    described = {entry.concept for entry in load_record(database.file("database.json"), Database).entries}
    if usable_items(items, described, config):
        return True
    about = sum(item.concept in described for item in items)
    logger.warning(
        "questions are left out: %d of %d are about the %d described concepts%s",
        about,
        len(items),
        len(described),
        f", none of these with the photo that evaluation.vqa.show = {config.show!r} wants" if about else "",
    )
    return False


def compare(run: PipelineRun, evaluated: Sequence[Evaluated]) -> list[ArtifactRef]:
    """Test every speaker against the base on the same items."""
    baseline = evaluated[0]
    return [
        run.stage(
            pipeline.COMPARE_SPEAKERS,
            label=other.speaker.name,
            baseline=list(baseline.results),
            other=list(other.results),
            config=run.config.evaluation.statistics,
        )
        for other in evaluated[1:]
    ]


def build_report(
    run: PipelineRun,
    photos: Photos,
    adapter: ArtifactRef | None,
    evaluated: Sequence[Evaluated],
    comparisons: Sequence[ArtifactRef],
) -> ArtifactRef:
    """Make the HTML report of everything."""
    return run.stage(
        pipeline.BUILD_REPORT,
        catalog=photos.catalog,
        training=adapter,
        databases=[one.database for one in evaluated],
        evaluations=[result for one in evaluated for result in one.results],
        comparisons=list(comparisons),
        facts=report_facts(run),
        config=run.config.report,
    )


def report_facts(run: PipelineRun) -> dict[str, object]:
    """What the report says about the run; nothing that differs between two runs of the same settings."""
    config = run.config
    models = {
        "speaker": config.training.model,
        LISTENER: config.training.listener,
        "answers questions": config.evaluation.answering,
        "independent listener": config.evaluation.independent,
    }
    return {
        "name": config.run.name,
        "photos": "rendered" if config.source.type == "pocket" else config.source.root.name,
        "candidates in training games": config.games.num_candidates,
        "models": {role: model_name(ref) for role, ref in models.items() if ref is not None},
        "seeds": {"splits": config.splits.seed, "games": config.games.seed, "training": config.training.seed},
    }


def model_name(ref: ModelRef) -> str:
    """A model as a person knows it, and the digest of its weights."""
    weights = model_identity(ref)["weights"]
    return f"{ref.path} ({weights[:12] if isinstance(weights, str) else ref.revision or 'newest revision'})"


def find_trained(run: PipelineRun, photos: Photos) -> ArtifactRef | None:
    """Return the adapter that was trained with these settings, if there is one; trains nothing."""
    dataset = build_training_data(run, photos)
    adapter = run.find(pipeline.TRAIN_SPEAKER, dataset=dataset, config=run.config.training)
    if adapter is None:
        logger.info("no speaker was trained with these settings yet; only the others are looked at")
    return adapter
