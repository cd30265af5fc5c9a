"""Which concepts are trained on, and which are held out: a seeded choice per category, or lists of your own."""

import difflib
import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from lewis_core.artifacts import ArtifactRef, digest_json
from lewis_core.config.data import SplitConfig
from lewis_core.data.duplicates import Duplicate
from lewis_core.data.subset import choose_subset
from lewis_core.errors import DataError
from lewis_core.records import Catalog, JsonObject, Splits, load_jsonl, load_record, save_record
from lewis_core.seeding import stable_rng

logger = logging.getLogger(__name__)
_NAMED = 5
"""Concepts or files named in a message."""


def split_concepts(catalog: ArtifactRef, output_dir: Path, config: SplitConfig) -> JsonObject:
    """Write ``splits.json``.

    Args:
        catalog: ``build-catalog`` artifact.
        output_dir: Folder to write to.
        config: Share, smallest category, lists, subset, seed.

    Returns:
        Numbers of training and held-out concepts, and the proof that they have nothing in common: digests of both lists
        and of the pictures of both, and the numbers of what is in both.

    Raises:
        DataError: If no concept is left to train on, a listed one is not in the catalog, or a picture is on both sides.
    """
    concepts = load_record(catalog.file("catalog.json"), Catalog)
    splits = choose_splits(concepts, config)
    near = catalog.path / "near_duplicates.jsonl"
    proof = prove_disjoint(concepts, splits, load_jsonl(near, Duplicate) if near.is_file() else ())
    _check_shared(concepts, splits, config)
    save_record(output_dir / "splits.json", splits)
    training_images = sum(len(concept.train) for concept in concepts.select(splits.training).concepts)
    return {
        "training": len(splits.training),
        "held_out": len(splits.held_out),
        "unused": len(splits.unused),
        "training_images": training_images,
        **proof,
    }


def choose_splits(catalog: Catalog, config: SplitConfig) -> Splits:
    """Split a catalog's concepts by the lists in the settings or by seed, then take the subset, if one is wanted.

    Raises:
        DataError: If every category is too small to train on, a listed concept does not exist, or there is no subset.
    """
    ids = [concept.id for concept in catalog.concepts]
    _check_listed(ids, config)
    training = set(config.training or _choose_all(catalog, config, without=set(config.held_out)))
    held_out = set(config.held_out) or set(ids) - training
    if config.subset is not None:
        candidates = [concept for concept in catalog.concepts if concept.id in training]
        training = {concept.id for concept in choose_subset(candidates, config.subset, config.seed)}
    if not held_out:
        raise DataError("splits.training lists every concept; leave some out, so that a speaker can be judged by them")
    unused = set(ids) - training - held_out
    return Splits(training=tuple(sorted(training)), held_out=tuple(sorted(held_out)), unused=tuple(sorted(unused)))


def _check_listed(ids: Sequence[str], config: SplitConfig) -> None:
    """Check the lists in the settings.

    Raises:
        DataError: If they name a concept twice, or one that is not in the catalog; proposes the nearest name.
    """
    if both := sorted(set(config.training) & set(config.held_out)):
        raise DataError(f"in splits.training and in splits.held_out: {', '.join(both[:_NAMED])}")
    for key, listed in (("training", config.training), ("held_out", config.held_out)):
        unknown = [concept for concept in listed if concept not in set(ids)]
        if unknown:
            nearest = difflib.get_close_matches(unknown[0], ids, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else f"; there are {', '.join(ids[:_NAMED])} …"
            raise DataError(
                f"splits.{key} names {len(unknown)} concepts that the catalog does not have: "
                f"{', '.join(unknown[:_NAMED])}{hint}"
            )


def _choose_all(catalog: Catalog, config: SplitConfig, without: set[str]) -> list[str]:
    """Choose every category's training concepts.

    Raises:
        DataError: If every category is too small to train on.
    """
    training: list[str] = []
    for category in catalog.categories:
        ids = sorted(concept.id for concept in catalog.concepts if concept.category == category)
        training += [concept for concept in choose_concepts(ids, category, config) if concept not in without]
    if not training:
        sizes = {name: sum(c.category == name for c in catalog.concepts) for name in catalog.categories}
        raise DataError(
            f"no concept to train on: no category has splits.min_concepts = {config.min_concepts} concepts; "
            f"found {', '.join(f'{name}: {size}' for name, size in sizes.items())}"
        )
    return training


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


def prove_disjoint(catalog: Catalog, splits: Splits, near_duplicates: Iterable[Duplicate] = ()) -> JsonObject:
    """Count what training and held-out concepts have in common, and digest both sides, so that anybody can check.

    Args:
        catalog: Concepts and their pictures.
        splits: The two sides.
        near_duplicates: Groups of pictures that look alike.

    Returns:
        ``shared_concepts``, ``shared_pictures`` (the same bytes), ``shared_looks`` (groups that look alike and have
        pictures on both sides), and per side the number and digest of its concepts and pictures.
    """
    pictures = {side: _pictures(catalog, getattr(splits, side)) for side in ("training", "held_out")}
    groups = [set(group.pictures) for group in near_duplicates]
    looks = sum(bool(group & pictures["training"]) and bool(group & pictures["held_out"]) for group in groups)
    if looks:
        logger.warning("%d groups of pictures that look alike are on both sides; see near_duplicates.jsonl", looks)
    return {
        "shared_concepts": len(set(splits.training) & set(splits.held_out)),
        "shared_pictures": len(pictures["training"] & pictures["held_out"]),
        "shared_looks": looks,
        **{f"{side}_concepts_sha256": digest_json(sorted(getattr(splits, side))) for side in pictures},
        **{f"{side}_pictures": len(found) for side, found in pictures.items()},
        **{f"{side}_pictures_sha256": digest_json(sorted(found)) for side, found in pictures.items()},
    }


def _pictures(catalog: Catalog, concepts: Iterable[str]) -> set[str]:
    """Digests of the photos of concepts."""
    chosen = catalog.select(concepts).concepts
    return {image.sha256 for concept in chosen for image in (*concept.train, *concept.test)}


def _check_shared(catalog: Catalog, splits: Splits, config: SplitConfig) -> None:
    """Stop when a picture is both trained on and held out, unless the settings allow it.

    Raises:
        DataError: If so; names the files.
    """
    shared = _pictures(catalog, splits.training) & _pictures(catalog, splits.held_out)
    if not shared:
        return
    chosen = catalog.select([*splits.training, *splits.held_out]).concepts
    paths = sorted(i.path for concept in chosen for i in (*concept.train, *concept.test) if i.sha256 in shared)
    named = ", ".join(paths[:_NAMED]) + (" …" if len(paths) > _NAMED else "")
    message = f"{len(shared)} pictures are of a training concept and of a held-out one: {named}"
    if config.shared_images == "stop":
        raise DataError(
            f"{message}. Remove them, set catalog.shared_images = 'set-aside', or accept it with "
            "splits.shared_images = 'report'"
        )
    logger.warning(message)
