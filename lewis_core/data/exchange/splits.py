"""Concept splits: the reference's ``train_combined_concepts`` and ``test_combined_concepts`` files."""

from collections.abc import Mapping
from typing import Any

from lewis_core.config.data import SplitConfig
from lewis_core.data.exchange.catalogs import export_catalog, iter_entries
from lewis_core.errors import CatalogError, DataError
from lewis_core.records import Catalog, JsonObject, Splits


def export_splits(catalog: Catalog, splits: Splits, config: SplitConfig, prefix: str = "") -> dict[str, JsonObject]:
    """Write a split as the reference does.

    Args:
        catalog: The concepts' images.
        splits: The two sides.
        config: What the split was made with.
        prefix: Put before every path.

    Returns:
        JSON by file name. Like the reference's, the training file leaves ``test`` empty and no file lists negatives;
        no test images are moved to training.
    """
    sides = {side: export_catalog(catalog.select(getattr(splits, side)), prefix) for side in ("training", "held_out")}
    for side, content in sides.items():
        for concepts in content.values():
            for lists in concepts.values():
                del lists["negative"]
                if side == "training":
                    lists["test"] = []
    return {
        f"train_combined_concepts_seed_{config.seed}.json": sides["training"],
        f"test_combined_concepts_seed_{config.seed}.json": sides["held_out"],
        f"train_test_combined_metadata_seed_{config.seed}.json": _metadata(catalog, splits, config),
    }


def _metadata(catalog: Catalog, splits: Splits, config: SplitConfig) -> JsonObject:
    """The reference's metadata; ``None`` and 0 where it samples test images and we do not."""
    chosen = set(splits.training)
    categories = {}
    for category in catalog.categories:
        concepts = [concept for concept in catalog.concepts if concept.category == category]
        selected = [concept for concept in concepts if concept.id in chosen]
        categories[category] = {
            "n_concepts": len(concepts),
            "selected_count": len(selected),
            "selected_concepts": [concept.name for concept in selected],
            "sampled_test_images_by_concept": {
                concept.name: {"n_original_test": len(concept.test), "n_sampled": 0, "sampled": []}
                for concept in selected
            },
        }
    return {
        "seed": config.seed,
        "concept_frac": config.concept_frac,
        "min_concepts_threshold": config.min_concepts,
        "test_sample_frac": 0.0,
        "max_test_images": None,
        "categories": categories,
    }


def import_splits(training: Mapping[str, Any], held_out: Mapping[str, Any] | None = None) -> dict[str, list[str]]:
    """Read which concepts a split trains on and holds out.

    Args:
        training: Content of the training file (also of a subset file).
        held_out: Content of the test file; ``None``: everything else is held out.

    Returns:
        Sorted concept ids for the settings ``splits.training`` and ``splits.held_out``.

    Raises:
        CatalogError: If a file is malformed.
        DataError: If a file is empty, or a concept is in both.
    """
    lists = {"training": _ids(training, "training file")}
    if held_out is not None:
        lists["held_out"] = _ids(held_out, "test file")
    if empty := [side for side, ids in lists.items() if not ids]:
        raise DataError(f"no concept is {empty[0].replace('_', ' ')}")
    if both := sorted(set(lists["training"]) & set(lists.get("held_out", ()))):
        raise DataError(f"{len(both)} concepts are in both files: {', '.join(both[:5])}")
    return lists


def _ids(content: Mapping[str, Any], file: str) -> list[str]:
    """Ids of all concepts, those without images too."""
    list(iter_entries(content, file))  # checks
    return sorted(f"{category}/{concept}" for category, concepts in content.items() for concept in concepts)


def merge_splits(training: Mapping[str, Any], held_out: Mapping[str, Any]) -> JsonObject:
    """Join both files to one catalog file, with images where the split has put them.

    The reference moves a share of the training concepts' test images to training; a catalog made from this file
    (``catalog.listing``) has them there too.

    Raises:
        CatalogError: If a file is malformed.
        DataError: If a concept is in both.
    """
    import_splits(training, held_out)
    merged: JsonObject = {category: dict(concepts) for category, concepts in training.items()}
    for category, concepts in held_out.items():
        merged.setdefault(category, {}).update(concepts)
    return merged


def parse_concept_list(text: str, file: str) -> list[str]:
    """Read lines ``category,concept`` (``OSC_subset_seed_<seed>.txt``); lines that repeat count once.

    Raises:
        CatalogError: If a line is not of this kind; names it.
    """
    found = set()
    for number, line in enumerate(text.splitlines(), 1):
        category, comma, concept = (part.strip() for part in line.partition(","))
        if not line.strip():
            continue
        if not (category and comma and concept) or "," in concept:
            raise CatalogError(f"{file}, line {number}: expected category,concept, found {line!r:.60}")
        found.add(f"{category}/{concept}")
    return sorted(found)
