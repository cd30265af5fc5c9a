"""What a listener in training is asked, about concepts that it is trained on and about held-out ones."""

from collections import Counter
from typing import Literal

from flows.steps import Photos
from lewis_core import pipeline
from lewis_core.artifacts import ArtifactRef
from lewis_core.config.base import ModelRef
from lewis_core.config.data import DatasetConfig
from lewis_core.config.listener_training import TrainListenerConfig
from lewis_core.records import Catalog, Splits, load_record
from tasks.run import PipelineRun


def ask(
    run: PipelineRun,
    photos: Photos,
    games: ArtifactRef,
    config: TrainListenerConfig,
    rows_config: DatasetConfig,
    speaker: ModelRef,
    concepts: Literal["training", "held-out"],
    label: str,
) -> ArtifactRef:
    """Games → yes-or-no questions: about pairs of photos, or about the speaker's descriptions."""
    prompts = config.model.prompts
    side = f"{concepts} {label}".strip()
    if config.questions == "pairs":
        return run.stage(
            pipeline.BUILD_DATASET, label=f"pairs {side}", games=games, prompts=prompts, config=rows_config
        )
    database = run.stage(
        pipeline.DESCRIBE_CONCEPTS,
        label=f"{concepts} concepts {label}".strip(),
        catalog=photos.catalog,
        splits=photos.splits,
        speaker=f"speaker {label}".strip(),
        model=speaker,
        config=run.config.describe.model_copy(update={"concepts": concepts}),
    )
    return run.stage(
        pipeline.BUILD_MATCHES, label=side, games=games, database=database, prompts=prompts, config=rows_config
    )


def ask_held_out(
    run: PipelineRun,
    photos: Photos,
    config: TrainListenerConfig,
    rows_config: DatasetConfig,
    speaker: ModelRef,
    label: str,
) -> ArtifactRef | None:
    """Questions about held-out concepts and their look-alikes, as many with yes as with no for an answer."""
    games = held_out_games(run, photos) if config.held_out_questions else None
    if games is None:
        return None
    balanced = rows_config.model_copy(update={"same_frac": 0.5, "cross_category_frac": 0.0})
    return ask(run, photos, games, config, balanced, speaker, "held-out", label)


def held_out_games(run: PipelineRun, photos: Photos) -> ArtifactRef | None:
    """Games on held-out concepts, one look-alike each, to ask a listener about; ``None`` if nothing is held out."""
    catalog, splits = photos.catalog, photos.splits
    categories = _held_out_categories(photos)
    if not categories:
        return None
    mined = [
        run.submit(
            pipeline.MINE_DISTRACTORS,
            label=f"held-out {category}",
            catalog=catalog,
            splits=splits,
            embeddings=photos.embeddings,
            category=category,
            config=run.config.mining,
            concepts="held-out",
        )
        for category in categories
    ]
    candidates = [future.result() for future in mined]
    changes = {"num_candidates": 2, "games_per_concept": None, "max_degenerate_frac": 1.0, "retrieval_list": None}
    narrow = run.config.games.model_copy(update=changes)
    return run.stage(pipeline.BUILD_GAMES, label="held-out", candidates=candidates, config=narrow)


def _held_out_categories(photos: Photos) -> list[str]:
    """Categories with two held-out concepts or more, sorted: one alone has no look-alike."""
    catalog = load_record(photos.catalog.file("catalog.json"), Catalog)
    splits = load_record(photos.splits.file("splits.json"), Splits)
    counts = Counter(concept.category for concept in catalog.select(splits.held_out).concepts)
    return sorted(category for category, count in counts.items() if count > 1)
