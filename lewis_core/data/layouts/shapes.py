"""The three ways in which data sets arrange their folders.

*nested*: ``[train|test/]<category>/<concept>/<n>.jpg``; *flat*: ``[train|test/]<concept>/<n>.jpg``; *kinds*:
``train/<concept>/<n>.jpg`` beside ``test/<Positive|Negative (Hard)|…>/<concept>/<n>.jpg``. Negatives of one concept lie
in a folder in the concept's own, negatives of all in a folder of the data root. What is not read is named.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from lewis_core.data.images import SUFFIXES
from lewis_core.data.layouts.base import (
    COMMON_NEGATIVES,
    CONCEPT_COMPANIONS,
    CONCEPT_NEGATIVES,
    ONE_CATEGORY,
    FoundFile,
    Listing,
    Split,
)
from lewis_core.data.tree import File, Folder, SetAside
from lewis_core.errors import CatalogError

SPLIT_FOLDERS: Mapping[Literal["train", "test"], tuple[str, ...]] = {
    "train": ("train", "train_", "Reference Images"),
    "test": ("test", "test_", "Validation"),
}
KINDS: Mapping[str, Split] = {
    "positive": "test",
    "negative (hard)": "hard_negative",
    "negative (other)": "negative",
    "fake": "hard_negative",
}
"""What a test folder of This-Is-My-Img holds, by its name in lower case; *fake* are generated look-alikes."""
_NESTED_DEPTH, _FLAT_DEPTH = 3, 2


class Places(NamedTuple):
    """Where images lie, counted from the folder of a split (or the data root)."""

    loose: tuple[File, ...]
    """Directly in it."""
    flat: tuple[File, ...]
    """One folder below."""
    nested: tuple[File, ...]
    """Two folders below."""
    deeper: tuple[File, ...]


def is_image_name(name: str) -> bool:
    """Whether a file's name promises an image."""
    return f".{name.rpartition('.')[2].lower()}" in SUFFIXES


def split_folders(root: Folder) -> dict[Split, Folder]:
    """Find the folders of a split.

    Raises:
        CatalogError: If one is a file or a link, or is there in two spellings.
    """
    found: dict[Split, Folder] = {}
    for split, names in SPLIT_FOLDERS.items():
        there = [folder for name in names if (folder := root.folder(name))]
        if len(there) > 1:
            raise CatalogError(
                f"the data root holds both {there[0].name} and {there[1].name}, two names for its {split} images; "
                "keep one of them"
            )
        if there:
            found[split] = there[0]
        for name in names[:2]:
            linked = [link for link, _ in root.links if link.name == name]
            if linked or root.file(name):
                kind = "a link" if linked else "a file"
                raise CatalogError(f"{name} in the data root is {kind}; expected a folder of categories or concepts")
    return found


def tops(root: Folder) -> list[tuple[Split, Folder]]:
    """Folders that hold categories or concepts, by split."""
    return list(split_folders(root).items()) or [("unsplit", root)]


@functools.lru_cache(maxsize=8)
def find_places(root: Folder) -> Places:
    """Sort the images of a data root by depth; negatives of a known name are left out.

    Files count whose names promise an image; if there are none, all do.
    """
    for only_images in (True, False):
        found: dict[int, list[File]] = {}
        for _, top in tops(root):
            for depth, file in _walk(top, only_images, 1):
                found.setdefault(min(depth, _NESTED_DEPTH + 1), []).append(file)
        if any(depth >= _FLAT_DEPTH for depth in found):
            break
    return Places(*(tuple(found.get(depth, ())) for depth in range(1, _NESTED_DEPTH + 2)))


def _walk(folder: Folder, only_images: bool, depth: int) -> Iterator[tuple[int, File]]:
    for file in folder.files:
        if is_image_name(file.name) or not only_images:
            yield depth, file
    for below in folder.folders:
        if below.name not in (COMMON_NEGATIVES if depth == 1 else CONCEPT_NEGATIVES):
            yield from _walk(below, only_images, depth + 1)


def is_nested(root: Folder) -> bool:
    """Whether images lie in concept folders in category folders."""
    places = find_places(root)
    return bool(places.nested) and not places.flat


def is_flat(root: Folder) -> bool:
    """Whether images lie in concept folders, without categories."""
    places = find_places(root)
    return bool(places.flat) and not places.nested


def is_kinds(root: Folder) -> bool:
    """Whether the test images lie in folders by kind, as those of This-Is-My-Img."""
    splits = split_folders(root)
    test = splits.get("test")
    return "train" in splits and test is not None and any(folder.name.lower() in KINDS for folder in test.folders)


def read_nested(root: Folder, listing: Listing) -> None:
    """Read ``[train|test/]<category>/<concept>/<n>.jpg``."""
    for split, top in _open_tops(root, listing):
        for category in _folders(top, "a category folder", listing):
            listing.categories.add(category.name)
            for concept in _folders(category, "a concept folder", listing):
                read_concept(concept, category.name, split, listing)


def read_flat(root: Folder, listing: Listing) -> None:
    """Read ``[train|test/]<concept>/<n>.jpg``; all concepts are of one pseudo-category."""
    for split, top in _open_tops(root, listing):
        for concept in _folders(top, "a concept folder", listing):
            read_concept(concept, ONE_CATEGORY, split, listing)


def read_either(root: Folder, listing: Listing) -> None:
    """Read a data set that is published flat, and used with one pseudo-category around it as well."""
    (read_nested if is_nested(root) else read_flat)(root, listing)


def read_kinds(root: Folder, listing: Listing) -> None:
    """Read ``train/<concept>/<n>.jpg`` and ``test/<kind>/<concept>/<n>.jpg``."""
    for split, top in _open_tops(root, listing):
        if split == "train":
            for concept in _folders(top, "a concept folder", listing):
                read_concept(concept, ONE_CATEGORY, "train", listing)
            continue
        for kind in _folders(top, "a folder of one kind", listing):
            holds = KINDS.get(kind.name.lower())
            if holds is None:
                reason = f"not one of the kinds of test images: {', '.join(KINDS)}"
                listing.set_aside.append(SetAside(path=kind.path, reason=reason))
                continue
            listing.files += [FoundFile(file.path, "", "", "negative") for file in _loose_images(kind, holds, listing)]
            for concept in kind.folders:
                read_concept(concept, ONE_CATEGORY, holds, listing)


def _loose_images(kind: Folder, holds: Split, listing: Listing) -> list[File]:
    """Images directly in a folder of one kind: only negatives can do without a concept."""
    images = [file for file in kind.files if is_image_name(file.name)]
    if holds == "negative":
        return images
    reason = "not in a folder of its concept"
    listing.set_aside.extend(SetAside(path=file.path, reason=reason) for file in images)
    return []


def read_concept(concept: Folder, category: str, split: Split, listing: Listing) -> None:
    """List the files of one concept, and of its folder of negatives."""
    listing.categories.add(category)
    listing.concepts.add((category, concept.name))
    _note_links(concept, listing)
    for file in concept.files:
        if file.name in CONCEPT_COMPANIONS:
            listing.companions.add(file.path)
        else:
            listing.files.append(FoundFile(file.path, category, concept.name, split))
    for folder in concept.folders:
        if folder.name in CONCEPT_NEGATIVES:
            images = [file for file in folder.files if not _is_sidecar(file, folder)]
            listing.files += [FoundFile(file.path, category, concept.name, "negative") for file in images]
            _note_links(folder, listing)
        else:
            names = ", ".join(repr(name) for name in CONCEPT_NEGATIVES)
            reason = f"a folder in a concept folder; only {names} are read there"
            listing.set_aside.append(SetAside(path=folder.path, reason=reason))


def _is_sidecar(file: File, folder: Folder) -> bool:
    """Whether a file only describes images, as downloaders leave them: a caption, a table of scores."""
    stem, _, suffix = file.name.rpartition(".")
    if suffix not in {"json", "txt", "parquet", "csv"}:
        return False
    return stem in {"scores", ""} or any(other.name.startswith(f"{stem}.") for other in folder.files if other != file)


def _open_tops(root: Folder, listing: Listing) -> list[tuple[Split, Folder]]:
    """Folders to read; says what lies beside them, and takes the negatives that belong to no concept."""
    found = tops(root)
    listing.is_split = found[0][0] != "unsplit"
    places = {place.path: place for place in (root, *(top for _, top in found))}.values()
    negatives = [folder for place in places for folder in place.folders if folder.name in COMMON_NEGATIVES]
    for folder in negatives:
        for below in folder.walk():
            images = [file for file in below.files if not _is_sidecar(file, below)]
            listing.files += [FoundFile(file.path, "", "", "negative") for file in images]
            _note_links(below, listing)
    if listing.is_split:
        read = {folder.path for folder in (*negatives, *(top for _, top in found))}
        _note_strangers(root, read, listing)
    return found


def _note_strangers(root: Folder, read: set[str], listing: Listing) -> None:
    """Name the folders and images beside the folders of a split."""
    strangers = [folder.path for folder in root.folders if folder.path not in read]
    strangers += [file.path for file in root.files if is_image_name(file.name)]
    listing.strangers += strangers
    reason = "not read: it is not in a train or test folder"
    listing.others += [SetAside(path=path, reason=reason) for path in strangers]
    listing.others += [SetAside(path=link.path, reason=why) for link, why in root.links]
    listing.set_aside += root.unnamed


def _folders(parent: Folder, expected: str, listing: Listing) -> Iterator[Folder]:
    """Folders in a folder; images beside them are set aside, and other files unless they lie in the root itself."""
    _note_links(parent, listing)
    for file in parent.files:
        if is_image_name(file.name):
            listing.set_aside.append(SetAside(path=file.path, reason=f"an image where {expected} is expected"))
        elif parent.path:
            listing.others.append(SetAside(path=file.path, reason=f"not an image, and not {expected}"))
    is_top = parent.path in {"", *(name for names in SPLIT_FOLDERS.values() for name in names)}
    yield from (folder for folder in parent.folders if not (is_top and folder.name in COMMON_NEGATIVES))


def _note_links(folder: Folder, listing: Listing) -> None:
    listing.set_aside += [SetAside(path=link.path, reason=reason) for link, reason in folder.links]
    listing.set_aside += folder.unnamed
