"""Catalogs: ``{category: {concept: {"train": [path], "test": [path], "negative": [path]}}}``."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from lewis_core.data.exchange.paths import PathFinder
from lewis_core.data.layouts.base import CONCEPT_COMPANIONS, FoundFile, Listing
from lewis_core.data.layouts.known import LAYOUTS
from lewis_core.data.tree import Folder, SetAside, find_stamps
from lewis_core.errors import CatalogError, DataError
from lewis_core.records import Catalog, ImageRecord, JsonObject

ListName = Literal["train", "test", "negative"]
LISTS: tuple[ListName, ...] = ("train", "test", "negative")


class Entry(NamedTuple):
    """One path of a catalog file."""

    category: str
    concept: str
    split: ListName
    path: str


def export_catalog(catalog: Catalog, prefix: str = "") -> JsonObject:
    """Write a catalog as the reference does.

    Args:
        catalog: What to write; negatives of no concept have no place in the format and are left out.
        prefix: Put before every path, e.g. ``data/PerVA/``.

    Returns:
        JSON of the reference's ``main_catalog``; categories and concepts are sorted.
    """

    def paths(images: tuple[ImageRecord, ...]) -> list[str]:
        return [prefix + image.path for image in images]

    content: JsonObject = {category: {} for category in catalog.categories}
    for concept in catalog.concepts:
        content[concept.category][concept.name] = {
            "train": paths(concept.train),
            "test": paths(concept.test),
            "negative": paths(concept.negative + concept.hard_negative),
        }
    return content


def iter_entries(content: Mapping[str, Any], file: str) -> Iterator[Entry]:
    """Go through the paths of a catalog file; a missing list is an empty one, as subset files leave them out.

    Args:
        content: What the file holds.
        file: Its name, for messages.

    Raises:
        CatalogError: If something is not of the expected kind; names the key.
    """
    for category, concepts in content.items():
        if not isinstance(concepts, dict):
            raise CatalogError(f"{file}: key {category!r}: expected an object of concepts, found {concepts!r:.60}")
        for concept, lists in concepts.items():
            key = f"{category!r} → {concept!r}"
            if not isinstance(lists, dict) or set(lists) - set(LISTS):
                raise CatalogError(f"{file}: key {key}: expected an object of {', '.join(LISTS)}, found {lists!r:.60}")
            for split in LISTS:
                paths = lists.get(split, [])
                if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
                    raise CatalogError(f"{file}: key {key} → {split!r}: expected a list of paths, found {paths!r:.60}")
                for path in paths:
                    yield Entry(category, concept, split, path)


def read_listing(content: Mapping[str, Any], file: str, root: Folder) -> Listing:
    """Read a data root by a catalog file instead of by the way its folders are arranged.

    Args:
        content: What the file holds.
        file: Its name, for messages.
        root: Everything in the data root.

    Returns:
        The listed files; those that are not there are set aside, those that nobody lists are not read.

    Raises:
        CatalogError: If the file is malformed, or one file is listed for two things.
    """
    finder, owners = PathFinder(find_stamps(root)), dict[str, Entry]()
    names = {concept for concepts in content.values() if isinstance(concepts, dict) for concept in concepts}
    words = max((layout.words for layout in LAYOUTS.values()), key=lambda words: len(names & set(words)))
    known = len(names & set(words))
    layout = replace(LAYOUTS["folders"], words=words if 2 * known >= len(names) else {})
    listing = Listing(layout, (f"catalog.listing = {file}",), is_split=True)
    listing.companions |= {path for path in find_stamps(root) if path.rpartition("/")[2] in CONCEPT_COMPANIONS}
    for entry in iter_entries(content, file):
        listing.categories.add(entry.category)
        listing.concepts.add((entry.category, entry.concept))
        try:
            path = finder.find(entry.path)
        except DataError as error:
            listing.set_aside.append(SetAside(path=entry.path, reason=f"listed in {file}, but {error}"))
            continue
        if path in owners:
            _refuse_twice(file, path, owners[path], entry)
        else:
            owners[path] = entry
            listing.files.append(FoundFile(path, entry.category, entry.concept, entry.split))
    return listing.sort()


def _refuse_twice(file: str, path: str, first: Entry, second: Entry) -> None:
    """Refuse a file that is listed for two things; the same entry twice does no harm.

    Raises:
        CatalogError: If the entries differ.
    """
    if first[:3] != second[:3]:
        places = " and for ".join(f"{one.category}/{one.concept} ({one.split})" for one in (first, second))
        raise CatalogError(f"{file}: {path} is listed for {places}; a picture can stand for one thing only")
