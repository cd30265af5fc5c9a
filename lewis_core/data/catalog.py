"""Folder of photos → catalog: every file opened, decoded and hashed once; what cannot be used is named and counted.

The bytes of the result depend on the photos and settings only, not on the order of the file system, the number of
workers or the process.
"""

import contextlib
import gc
import json
import logging
import time
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lewis_core.config.base import Runtime
from lewis_core.config.data import CatalogConfig
from lewis_core.data.companions import write_companions
from lewis_core.data.contact_sheet import encode_contact_sheet
from lewis_core.data.duplicates import Duplicate, find_duplicates, find_near_duplicates, find_places, set_aside_shared
from lewis_core.data.exchange.catalogs import read_listing
from lewis_core.data.inspection import Inspected, check_quarantine, inspect_files
from lewis_core.data.json_files import load_json_object
from lewis_core.data.layout import EXPECTED, Listing, Split, find_stamps, read_layout, read_tree
from lewis_core.data.memory import FileMemory
from lewis_core.data.overview import choose_photos, describe_catalog
from lewis_core.data.readers import Readers
from lewis_core.data.tree import Folder
from lewis_core.data.vocabulary import category_word, word_in_name
from lewis_core.errors import CatalogError
from lewis_core.records import Catalog, Concept, ImageRecord, JsonObject, save_jsonl, save_record
from lewis_core.reporting import Reporter
from lewis_core.seeding import stable_rng

logger = logging.getLogger(__name__)
_NAMED = 5
"""Files named in an error message."""
_COLLECTIONS, _FEW_COLLECTIONS = gc.get_threshold(), (1_000_000, 10, 10)


@contextlib.contextmanager
def _collecting_seldom() -> Iterator[None]:
    """Look for unused cycles of objects seldom: there are none among the many records of a catalog."""
    gc.set_threshold(*_FEW_COLLECTIONS)
    try:
        yield
    finally:
        gc.set_threshold(*_COLLECTIONS)


@_collecting_seldom()
def build_catalog(
    fingerprint: str,
    output_dir: Path,
    config: CatalogConfig,
    data_root: Path,
    runtime: Runtime,
    reporter: Reporter,
    work_dir: Path | None = None,
    cache_dir: Path | None = None,
) -> JsonObject:
    """Read a data root.

    Writes ``catalog.json``, ``quarantine.jsonl`` (path, reason), ``duplicates.jsonl`` (the same bytes),
    ``near_duplicates.jsonl`` (the same look), ``statistics.json``, ``contact_sheet.jpg`` and, when the data root has
    them, ``questions.jsonl`` (from ``visual-qa.json`` or the data set's own file, if any of it can be used) and
    ``facts.json``.

    Args:
        fingerprint: State of the data root (:func:`~lewis_core.data.layout.scan_tree`); only identifies the stage.
        output_dir: Folder to write to.
        config: What counts as an image, and how much may be wrong.
        data_root: Folder of photos.
        runtime: Number of workers.
        reporter: Receives progress.
        work_dir: Receives the list of unusable images when there are too many.
        cache_dir: Remembers what was read, so that another catalog of the same folder opens new and changed files only.

    Returns:
        The layout and the evidence for it, counts, and the names of empty categories and of concepts without a
        usable image.

    Raises:
        CatalogError: If the folder does not have a known layout, or holds no usable image.
        QuarantineError: If more images are unusable than the settings allow.
    """
    del fingerprint
    with Readers(runtime.num_workers) as readers:
        listing, inspected = _inspect(config, data_root, readers, reporter, cache_dir)
        if config.shared_images == "set-aside":
            inspected = set_aside_shared(inspected)
        check_quarantine(inspected, data_root, config, work_dir)
        catalog = _assemble(inspected, listing, config)
        if not catalog.concepts:
            raise CatalogError(f"no usable image in {data_root}; expected {EXPECTED}")
        sheet = readers.begin(encode_contact_sheet, choose_photos(catalog), data_root, runtime.num_workers)
        summary = _write(catalog, listing, inspected, config, data_root, output_dir)
        (output_dir / "contact_sheet.jpg").write_bytes(sheet())
    return summary


def _write(
    catalog: Catalog, listing: Listing, inspected: Inspected, config: CatalogConfig, data_root: Path, output_dir: Path
) -> JsonObject:
    """Write everything but the contact sheet."""
    places = find_places(catalog)
    duplicates = {
        "duplicates": find_duplicates(places),
        "near_duplicates": find_near_duplicates(places, inspected.looks),
    }
    set_aside = [*inspected.unusable, *inspected.others]
    questions = write_companions(data_root, output_dir, listing, catalog, set_aside, config)
    save_record(output_dir / "catalog.json", catalog)
    save_jsonl(output_dir / "quarantine.jsonl", set_aside)
    for name, found in duplicates.items():
        save_jsonl(output_dir / f"{name}.jsonl", found)
    (output_dir / "statistics.json").write_text(
        json.dumps(describe_catalog(catalog), indent=1) + "\n", encoding="utf-8"
    )
    return {
        "layout": listing.layout.name,
        "layout_evidence": list(listing.evidence),
        **_count(catalog, listing),
        "quarantined": len(inspected.unusable),
        "other_files": len(inspected.others),
        **{key: count for name, found in duplicates.items() for key, count in _count_duplicates(name, found).items()},
        **questions,
    }


def _inspect(
    config: CatalogConfig, data_root: Path, readers: Readers, reporter: Reporter, cache_dir: Path | None
) -> tuple[Listing, Inspected]:
    """List the files and open those that are not remembered; what opens them starts while the listing is read.

    Raises:
        CatalogError: If no catalog can be made from the folder.
    """
    listed_ns, tree = time.time_ns(), read_tree(data_root)
    stamps = find_stamps(tree)
    with contextlib.ExitStack() as stack:
        memory = None
        if cache_dir is not None:
            memory = stack.enter_context(FileMemory(cache_dir, data_root, stamps, listed_ns))
        readers.expect(sum(memory is None or memory.recall(path) is None for path in stamps))
        listing = (
            read_layout(tree, config.layout)
            if config.listing is None
            else _read_listing(tree, data_root, config.listing)
        )
        _check_listing(listing, data_root, config)
        inspected = inspect_files(listing, data_root, config, readers, reporter, memory)
    logger.info("%d of %d files were opened, the others are known", inspected.num_read, len(listing.files))
    return listing, inspected


def _read_listing(tree: Folder, data_root: Path, name: str) -> Listing:
    """Read the data root by a catalog file in it.

    Raises:
        CatalogError: If the file is missing or malformed.
    """
    if tree.file(name) is None:
        raise CatalogError(f"catalog.listing: {data_root} holds no file {name!r}")
    return read_listing(load_json_object(data_root / name), name, tree)


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
    _warn("folders and images beside train and test, not read", listing.strangers)
    known = listing.categories | {f"{category}/{concept}" for category, concept in listing.concepts}
    _warn("names that differ in case or spelling of letters only, taken for different things", find_twins(known))
    if unknown := sorted(set(config.category_words) - known):
        logger.warning("catalog.category_words names what the data does not have: %s", ", ".join(unknown))


def find_twins(names: Iterable[str]) -> list[str]:
    """Find names that people take for one: they differ in upper and lower case, or in how an accent is stored.

    Args:
        names: Names of categories, and of concepts as ``category/name``.

    Returns:
        Each group as one text, sorted; letters beyond ASCII are escaped, so that the names differ to the eye.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        groups[unicodedata.normalize("NFC", name).casefold()].append(name)
    return [" and ".join(map(ascii, group)) for _, group in sorted(groups.items()) if len(group) > 1]


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
    if not images:
        return (), ()  # as in every concept of a layout that is split
    pictures = sorted({image.sha256 for image in images})
    order = stable_rng(seed, "train-images", category, name).permutation(len(pictures))
    chosen = {pictures[index] for index in order[:num_train]}
    train = tuple(image for image in images if image.sha256 in chosen)
    return train, tuple(image for image in images if image.sha256 not in chosen)


def _count(catalog: Catalog, listing: Listing) -> JsonObject:
    """Sizes of the catalog, and the names of what came out empty (also logged)."""
    regrouped = next(iter(listing.categories)) if len(listing.categories) == 1 else None
    used = {(regrouped or concept.category, concept.name) for concept in catalog.concepts}
    without_image = sorted("/".join(concept) for concept in listing.concepts - used)
    empty = sorted(listing.categories - {category for category, _ in used})
    lonely = [concept.id for concept in catalog.concepts if len({i.sha256 for i in concept.train + concept.test}) == 1]
    sizes = Counter(concept.category for concept in catalog.concepts)
    alone = sorted(category for category, size in sizes.items() if size == 1)
    _warn("categories without a usable image, left out", empty)
    _warn("concepts without a usable image, left out", without_image)
    _warn("concepts with a single picture, which cannot be the target of a game about itself", lonely)
    _warn("categories with a single concept, which has no look-alikes and is held out", alone)
    return {
        "categories": len(catalog.categories),
        "concepts": len(catalog.concepts),
        "train_images": sum(len(concept.train) for concept in catalog.concepts),
        "test_images": sum(len(concept.test) for concept in catalog.concepts),
        "negative_images": len(catalog.negatives)
        + sum(len(concept.negative) + len(concept.hard_negative) for concept in catalog.concepts),
        "empty_categories": empty,
        "concepts_without_image": without_image,
        "concepts_with_one_image": lonely,
        "categories_with_one_concept": alone,
    }


def _count_duplicates(name: str, found: Sequence[Duplicate]) -> JsonObject:
    """Numbers of duplicates by what is wrong with them (also logged)."""
    words = name.replace("_", " ")
    _warn(f"{words} across concepts", (d.paths[0] for d in found if d.across_concepts))
    _warn(f"{words} across train and test", (d.paths[0] for d in found if d.across_splits))
    _warn(f"{words} among negatives", (d.paths[0] for d in found if d.among_negatives))
    return {
        f"{name}_across_concepts": sum(duplicate.across_concepts for duplicate in found),
        f"{name}_across_splits": sum(duplicate.across_splits for duplicate in found),
        f"{name}_among_negatives": sum(duplicate.among_negatives for duplicate in found),
    }


def _warn(what: str, names: Iterable[str]) -> None:
    if listed := list(names):
        logger.warning(
            "%d %s: %s", len(listed), what, ", ".join(listed[:_NAMED]) + (" …" if len(listed) > _NAMED else "")
        )
