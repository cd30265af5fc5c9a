"""Folder of photos → catalog: every file opened, decoded and hashed once; what cannot be used is named and counted.

The bytes of the result depend on the photos and settings only, not on the order of the file system, the number of
workers or the process.
"""

import json
import logging
import shutil
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lewis_core.config.base import Runtime
from lewis_core.config.data import CatalogConfig
from lewis_core.data.images import NOT_AN_IMAGE, SUFFIXES, inspect_image
from lewis_core.data.layout import EXPECTED, FoundFile, Listing, SetAside, Split, list_data_root
from lewis_core.data.questions import read_questions
from lewis_core.data.vocabulary import category_word, word_in_name
from lewis_core.errors import CatalogError, ImageError, QuarantineError
from lewis_core.records import Catalog, Concept, ImageRecord, JsonObject, Record, save_jsonl, save_record
from lewis_core.reporting import Reporter, track
from lewis_core.seeding import stable_rng

logger = logging.getLogger(__name__)
FACTS_FILE = "facts.json"
_NAMED = 5
"""Files named in an error message."""


class Duplicate(Record):
    """A line of ``duplicates.jsonl``: one picture in several places where it should not be."""

    sha256: str
    paths: tuple[str, ...]
    """Sorted."""
    across_concepts: bool
    """It stands for different things, so no description can tell them apart."""
    across_splits: bool
    """A photo for testing is also one for training."""


@dataclass(frozen=True)
class Inspected:
    """The usable images of a data root, and what was set aside."""

    images: tuple[tuple[FoundFile, ImageRecord], ...]
    """Sorted by path."""
    unusable: tuple[SetAside, ...]
    """Images that cannot be used, and links; they count for the limit."""
    others: tuple[SetAside, ...]
    """Files that do not claim to be images, such as notes; they do not count."""


def build_catalog(
    fingerprint: str,
    output_dir: Path,
    config: CatalogConfig,
    data_root: Path,
    runtime: Runtime,
    reporter: Reporter,
) -> JsonObject:
    """Read a data root.

    Writes ``catalog.json``, ``quarantine.jsonl`` (path, reason), ``duplicates.jsonl`` and, when the data root has
    them, ``questions.jsonl`` (from ``visual-qa.json``, if any of it can be used) and ``facts.json``.

    Args:
        fingerprint: State of the data root (:func:`~lewis_core.data.layout.scan_tree`); only identifies the stage.
        output_dir: Folder to write to.
        config: What counts as an image, and how much may be wrong.
        data_root: Folder of photos.
        runtime: Number of workers.
        reporter: Receives progress.

    Returns:
        The layout and the evidence for it, counts, and the names of empty categories and of concepts without a
        usable image.

    Raises:
        CatalogError: If the folder does not have a known layout, or holds no usable image.
        QuarantineError: If more images are unusable than the settings allow.
    """
    del fingerprint
    listing = list_data_root(data_root, config.layout)
    _check_listing(listing, data_root, config)
    inspected = _inspect(listing, data_root, config, runtime, reporter)
    catalog = _assemble(inspected, listing, config)
    _check_quarantine(inspected, catalog, data_root, config)
    duplicates = find_duplicates(catalog)
    set_aside = [*inspected.unusable, *inspected.others]
    questions = _write_companions(data_root, output_dir, listing, catalog, set_aside)
    save_record(output_dir / "catalog.json", catalog)
    save_jsonl(output_dir / "quarantine.jsonl", set_aside)
    save_jsonl(output_dir / "duplicates.jsonl", duplicates)
    return {
        "layout": listing.layout.name,
        "layout_evidence": list(listing.evidence),
        **_count(catalog, listing),
        "quarantined": len(inspected.unusable),
        "other_files": len(inspected.others),
        "duplicates_across_concepts": sum(duplicate.across_concepts for duplicate in duplicates),
        "duplicates_across_splits": sum(duplicate.across_splits for duplicate in duplicates),
        **questions,
    }


def _check_listing(listing: Listing, data_root: Path, config: CatalogConfig) -> None:
    """Refuse a data root from which no catalog can be made.

    Raises:
        CatalogError: If it holds no files in concept folders, or a split is missing and none is configured.
    """
    if not listing.files:
        hints = [f"{entry.path}: {entry.reason}" for entry in [*listing.set_aside, *listing.others][:_NAMED]]
        raise CatalogError("\n".join([f"no images in {data_root}; expected {EXPECTED}", *hints]))
    if not listing.is_split and config.train_images is None:
        raise CatalogError(
            f"{data_root} has no train and test folders; add them, or say with catalog.train_images how many images "
            "of each concept are for training"
        )
    known = listing.categories | {f"{category}/{concept}" for category, concept in listing.concepts}
    if unknown := sorted(set(config.category_words) - known):
        logger.warning("catalog.category_words names what the data does not have: %s", ", ".join(unknown))


def _inspect(
    listing: Listing, data_root: Path, config: CatalogConfig, runtime: Runtime, reporter: Reporter
) -> Inspected:
    """Open every file; Pillow and hashlib leave the interpreter while they work, so threads are enough."""

    def inspect(file: FoundFile) -> ImageRecord | ImageError:
        try:
            return inspect_image(data_root, file.path, config.max_image_pixels)
        except ImageError as error:
            return error

    with warnings.catch_warnings(), ThreadPoolExecutor(runtime.num_workers) as pool:
        warnings.filterwarnings("ignore", module="PIL")  # about metadata; what matters raises
        results = list(track(pool.map(inspect, listing.files), len(listing.files), "images", reporter))
    images: list[tuple[FoundFile, ImageRecord]] = []
    unusable, others = list(listing.set_aside), list(listing.others)
    for file, result in zip(listing.files, results, strict=True):
        if isinstance(result, ImageRecord):
            images.append((file, result))
        else:
            claims = Path(file.path).suffix.lower() in SUFFIXES or result.reason != NOT_AN_IMAGE
            (unusable if claims else others).append(SetAside(path=result.path, reason=result.reason))
    return Inspected(tuple(images), tuple(sorted(unusable, key=_path)), tuple(sorted(others, key=_path)))


def _path(entry: SetAside) -> str:
    return entry.path


def _check_quarantine(inspected: Inspected, catalog: Catalog, data_root: Path, config: CatalogConfig) -> None:
    """Stop when too much is wrong.

    Raises:
        QuarantineError: If the share of unusable images is above the limit.
        CatalogError: If none is left.
    """
    bad, total = len(inspected.unusable), len(inspected.unusable) + len(inspected.images)
    if bad > config.max_quarantine_frac * total:
        named = [f"  {entry.path}: {entry.reason}" for entry in inspected.unusable[:_NAMED]]
        more = [f"  … and {bad - _NAMED} more"] if bad > _NAMED else []
        raise QuarantineError(
            "\n".join(
                [
                    f"{bad} of {total} images in {data_root} cannot be used, more than catalog.max_quarantine_frac = "
                    f"{config.max_quarantine_frac:g} allows; repair or remove them, or raise the limit:",
                    *named,
                    *more,
                ]
            )
        )
    if not catalog.concepts:
        raise CatalogError(f"no usable image in {data_root}; expected {EXPECTED}")


def _assemble(inspected: Inspected, listing: Listing, config: CatalogConfig) -> Catalog:
    """Group images into concepts; concepts without a photo of their own are left out."""
    grouped: dict[tuple[str, str], dict[Split, list[ImageRecord]]] = defaultdict(lambda: defaultdict(list))
    for file, image in inspected.images:
        grouped[file.category, file.concept][file.split].append(image)
    negatives = grouped.pop(("", ""), {}).get("negative", [])
    concepts = []
    for (category, name), images in grouped.items():
        train, test = choose_train_images(images["unsplit"], config.train_images or 0, config.seed, category, name)
        word = _find_word(category, name, listing, config)
        concept = Concept(
            category=word.replace(" ", "_") if _groups_by_word(listing, config) else category,
            category_word=word,
            name=name,
            train=(*images["train"], *train),
            test=(*images["test"], *test),
            negative=tuple(images["negative"]),
            hard_negative=tuple(images["hard_negative"]),
        )
        if concept.train or concept.test:
            concepts.append(concept)
    return Catalog(concepts=tuple(sorted(concepts, key=lambda concept: concept.id)), negatives=tuple(negatives))


def _find_word(category: str, name: str, listing: Listing, config: CatalogConfig) -> str:
    """Word for a concept's kind: the settings', else the data set's, else the category's."""
    word = word_in_name(name) if listing.layout.word_in_name else None
    return category_word(category, name, config.category_words, {name: word} if word else listing.layout.words)


def _groups_by_word(listing: Listing, config: CatalogConfig) -> bool:
    """Whether the one pseudo-category of a data set is taken apart by the words for its concepts."""
    return config.flat_category == "word" and len(listing.categories) == 1


def choose_train_images(
    images: Sequence[ImageRecord], num_train: int, seed: int, category: str, name: str
) -> tuple[tuple[ImageRecord, ...], tuple[ImageRecord, ...]]:
    """Choose a concept's images for training in an unsplit layout; copies of one picture stay together.

    Args:
        images: All images of the concept.
        num_train: Different pictures to choose.
        seed: Seed of the choice, which depends on the pictures' content and not on their names.
        category: The concept's category.
        name: The concept's name.

    Returns:
        Images for training and for testing, in the order given.
    """
    pictures = sorted({image.sha256 for image in images})
    order = stable_rng(seed, "train-images", category, name).permutation(len(pictures))
    chosen = {pictures[index] for index in order[:num_train]}
    train = tuple(image for image in images if image.sha256 in chosen)
    return train, tuple(image for image in images if image.sha256 not in chosen)


def find_duplicates(catalog: Catalog) -> list[Duplicate]:
    """Find pictures that several concepts share, or that are both for training and for testing."""
    places: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for concept in catalog.concepts:
        for split, images in (("train", concept.train), ("test", concept.test)):
            for image in images:
                places[image.sha256].append((concept.id, split, image.path))
    duplicates = []
    for sha256, found in sorted(places.items()):
        concepts, splits, paths = (set(column) for column in zip(*found, strict=True))
        if len(concepts) > 1 or len(splits) > 1:
            duplicates.append(
                Duplicate(
                    sha256=sha256,
                    paths=tuple(sorted(paths)),
                    across_concepts=len(concepts) > 1,
                    across_splits=len(splits) > 1,
                )
            )
    return duplicates


def _write_companions(
    data_root: Path, output_dir: Path, listing: Listing, catalog: Catalog, set_aside: list[SetAside]
) -> JsonObject:
    """Take over the questions and the ground truth that come with the photos; malformed questions are set aside.

    Raises:
        CatalogError: If such a file is not JSON, or there are several files of questions.
    """
    if (data_root / FACTS_FILE).is_file():
        _check_json(data_root / FACTS_FILE)
        shutil.copyfile(data_root / FACTS_FILE, output_dir / FACTS_FILE)
    found = [name for name in listing.layout.question_files if (data_root / name).is_file()]
    if not found:
        return {}
    if len(found) > 1:
        raise CatalogError(f"{data_root} holds several files of questions, {' and '.join(found)}; keep one of them")
    items, malformed = read_questions(data_root / found[0], catalog)
    set_aside.extend(malformed)
    if items:
        save_jsonl(output_dir / "questions.jsonl", items)
    else:
        logger.warning("%s has no question that can be used; none is asked", found[0])
    if malformed:
        logger.warning(
            "%d questions cannot be used, e.g. %s: %s", len(malformed), malformed[0].path, malformed[0].reason
        )
    return {"questions": len(items), "malformed_questions": len(malformed)}


def _check_json(path: Path) -> None:
    """Check that a file holds a JSON object.

    Raises:
        CatalogError: If it does not.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CatalogError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise CatalogError(f"{path}: expected a JSON object, found a {type(content).__name__}")


def _count(catalog: Catalog, listing: Listing) -> JsonObject:
    """Sizes of the catalog, and the names of what came out empty (also logged)."""
    regrouped = next(iter(listing.categories)) if len(listing.categories) == 1 else None
    used = {(regrouped or concept.category, concept.name) for concept in catalog.concepts}
    without_image = sorted("/".join(concept) for concept in listing.concepts - used)
    empty = sorted(listing.categories - {category for category, _ in used})
    _warn("categories without a usable image, left out", empty)
    _warn("concepts without a usable image, left out", without_image)
    return {
        "categories": len(catalog.categories),
        "concepts": len(catalog.concepts),
        "train_images": sum(len(concept.train) for concept in catalog.concepts),
        "test_images": sum(len(concept.test) for concept in catalog.concepts),
        "negative_images": len(catalog.negatives)
        + sum(len(concept.negative) + len(concept.hard_negative) for concept in catalog.concepts),
        "empty_categories": empty,
        "concepts_without_image": without_image,
    }


def _warn(what: str, names: Iterable[str]) -> None:
    if listed := list(names):
        logger.warning(
            "%d %s: %s", len(listed), what, ", ".join(listed[:_NAMED]) + (" …" if len(listed) > _NAMED else "")
        )
