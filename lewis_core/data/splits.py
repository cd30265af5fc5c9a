"""Which concepts are trained on, and which are held out: a seeded choice per category."""

import math
from collections.abc import Sequence
from pathlib import Path

from lewis_core.artifacts import ArtifactRef
from lewis_core.config.data import SplitConfig
from lewis_core.errors import DataError
from lewis_core.records import Catalog, JsonObject, Splits, load_record, save_record
from lewis_core.seeding import stable_rng


def split_concepts(catalog: ArtifactRef, output_dir: Path, config: SplitConfig) -> JsonObject:
    """Write ``splits.json``.

    Args:
        catalog: ``build-catalog`` artifact.
        output_dir: Folder to write to.
        config: Share, smallest category, seed.

    Returns:
        Numbers of training and held-out concepts.

    Raises:
        DataError: If no concept is left to train on.
    """
    splits = choose_training(load_record(catalog.file("catalog.json"), Catalog), config)
    save_record(output_dir / "splits.json", splits)
    return {"training": len(splits.training), "held_out": len(splits.held_out)}


def choose_training(catalog: Catalog, config: SplitConfig) -> Splits:
    """Split a catalog's concepts, category by category.

    Raises:
        DataError: If every category is too small to train on.
    """
    training: list[str] = []
    for category in catalog.categories:
        ids = sorted(concept.id for concept in catalog.concepts if concept.category == category)
        training += choose_concepts(ids, category, config)
    if not training:
        sizes = {name: sum(c.category == name for c in catalog.concepts) for name in catalog.categories}
        raise DataError(
            f"no concept to train on: no category has splits.min_concepts = {config.min_concepts} concepts; "
            f"found {', '.join(f'{name}: {size}' for name, size in sizes.items())}"
        )
    held_out = {concept.id for concept in catalog.concepts} - set(training)
    return Splits(training=tuple(sorted(training)), held_out=tuple(sorted(held_out)))


def choose_concepts(ids: Sequence[str], category: str, config: SplitConfig) -> list[str]:
    """Choose a category's training concepts.

    Args:
        ids: Ids of its ``n`` concepts, sorted.
        category: Its name; part of the seed, so that other categories do not matter.
        config: Share, smallest category, seed.

    Returns:
        ``ceil(concept_frac * n)`` ids, at most ``n - 1`` so that one is held out; none when ``n < min_concepts``.
    """
    if len(ids) < config.min_concepts:
        return []
    exact = round(config.concept_frac * len(ids), 9)  # 0.28 * 25 is a little more than 7
    count = min(math.ceil(exact), len(ids) - 1)
    order = stable_rng(config.seed, "split", category).permutation(len(ids))
    return sorted(ids[index] for index in order[:count])
