"""Find the image files of a data root, and say what each is by where it lies.

Two layouts: split, ``<root>/{train,test}/<category>/<concept>/<n>.<ext>`` (PerVA's own spelling ``train_``/``test_`` as
well), and unsplit, ``<root>/<category>/<concept>/<n>.<ext>``. Images in ``<concept>/laion`` are negatives. Hidden
files are ignored. Linked folders are never entered; everything that looks like data and is not read is named.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lewis_core.artifacts import digest_json
from lewis_core.data.images import SUFFIXES
from lewis_core.errors import CatalogError
from lewis_core.records import Record

Split = Literal["train", "test", "negative", "unsplit"]
NEGATIVE_FOLDER = "laion"
EXPECTED = "<root>/{train,test}/<category>/<concept>/<n>.jpg or <root>/<category>/<concept>/<n>.jpg"
_SPLIT_FOLDERS: dict[Split, tuple[str, str]] = {"train": ("train", "train_"), "test": ("test", "test_")}


class SetAside(Record):
    """A line of ``quarantine.jsonl``: something that is not used, and why."""

    path: str
    """Relative to the data root."""
    reason: str


@dataclass(frozen=True)
class FoundFile:
    """A file in a concept's folder."""

    path: str
    """Relative to the data root, with forward slashes."""
    category: str
    concept: str
    split: Split


@dataclass
class Layout:
    """What a data root holds; nothing has been opened yet."""

    is_split: bool
    files: list[FoundFile] = field(default_factory=list)
    """Sorted by path."""
    set_aside: list[SetAside] = field(default_factory=list)
    """Links, and folders and names that are not read although images are expected there."""
    others: list[SetAside] = field(default_factory=list)
    """What is no data: notes between the folders, folders beside ``train`` and ``test``."""
    categories: set[str] = field(default_factory=set)
    """Names of all category folders, empty ones too."""
    concepts: set[tuple[str, str]] = field(default_factory=set)
    """(category, concept) of all concept folders, empty ones too."""


def read_layout(root: Path) -> Layout:
    """List a data root.

    Raises:
        CatalogError: If the root is missing, or an image lies where a folder is expected.
    """
    check_root(root)
    tops = _split_folders(root)
    layout = Layout(is_split=bool(tops))
    if tops:
        for split, top in tops.items():
            _read_categories(root, top, split, layout)
        _note_strangers(root, set(tops.values()), layout)
    else:
        _read_categories(root, root, "unsplit", layout)
    layout.files.sort(key=lambda file: file.path)
    layout.set_aside.sort(key=lambda entry: entry.path)
    layout.others.sort(key=lambda entry: entry.path)
    return layout


def scan_tree(root: Path) -> str:
    """Fingerprint a data root without opening its files: names, sizes and times of change.

    Returns:
        A digest (hex) that changes when a file is added, removed, renamed or written.

    Raises:
        CatalogError: If the root is missing.
    """
    check_root(root)
    entries = []
    for folder, names, files in os.walk(root):
        names[:] = sorted(name for name in names if not name.startswith("."))
        links = [name for name in names if (Path(folder) / name).is_symlink()]
        for name in sorted([*links, *(name for name in files if not name.startswith("."))]):
            path = Path(folder) / name
            try:
                status = path.lstat() if name in links else path.stat()
            except OSError:  # a link to nothing, or in a circle
                status = path.lstat()
            entries.append([_printable(path.relative_to(root).as_posix()), status.st_size, status.st_mtime_ns])
    return digest_json(sorted(entries))


def check_root(root: Path) -> None:
    """Check that a data root is a folder.

    Raises:
        CatalogError: If it is not; names it.
    """
    if not root.exists():
        raise CatalogError(f"no data root at {root}; expected a folder: {EXPECTED}")
    if not root.is_dir():
        raise CatalogError(f"the data root {root} is a file; expected a folder: {EXPECTED}")


def _split_folders(root: Path) -> dict[Split, Path]:
    """Find the folders of the split layout.

    Raises:
        CatalogError: If one is a file or a link, or is there in both spellings.
    """
    found: dict[Split, Path] = {}
    for split, names in _SPLIT_FOLDERS.items():
        there = [root / name for name in names if (root / name).exists() or (root / name).is_symlink()]
        if len(there) > 1:
            raise CatalogError(f"{root} holds both {names[0]} and {names[1]}; keep one of them")
        for path in there:
            if path.is_symlink() or not path.is_dir():
                kind = "a link" if path.is_symlink() else "a file"
                raise CatalogError(f"{path} is {kind}; expected a folder of categories: {EXPECTED}")
            found[split] = path
    return found


def _note_strangers(root: Path, tops: set[Path], layout: Layout) -> None:
    """Name the folders and images beside the folders of the split layout."""
    for entry in _entries(root, root, layout):
        if entry not in tops and (entry.is_dir() or entry.suffix.lower() in SUFFIXES):
            reason = "not read: it is not in a train or test folder"
            layout.others.append(SetAside(path=_relative(root, entry), reason=reason))


def _read_categories(root: Path, top: Path, split: Split, layout: Layout) -> None:
    for category in _folders(root, top, "a category folder", layout):
        layout.categories.add(category.name)
        for concept in _folders(root, category, "a concept folder", layout):
            layout.concepts.add((category.name, concept.name))
            _read_concept(root, concept, split, layout)


def _read_concept(root: Path, concept: Path, split: Split, layout: Layout) -> None:
    """List the files of one concept, and of its folder of negatives."""
    category, name = concept.parent.name, concept.name
    for entry in _entries(root, concept, layout):
        if not entry.is_dir():
            layout.files.append(FoundFile(_relative(root, entry), category, name, split))
        elif entry.is_symlink():
            layout.set_aside.append(_linked(root, entry))
        elif entry.name == NEGATIVE_FOLDER:
            negatives = [path for path in _entries(root, entry, layout) if not path.is_dir()]
            layout.files += [FoundFile(_relative(root, path), category, name, "negative") for path in negatives]
        else:
            reason = f"a folder in a concept folder; only {NEGATIVE_FOLDER!r} is read there"
            layout.set_aside.append(SetAside(path=_relative(root, entry), reason=reason))


def _folders(root: Path, parent: Path, expected: str, layout: Layout) -> Iterator[Path]:
    """Real folders in a folder; links are set aside, other files too unless they lie in the root itself.

    Raises:
        CatalogError: If an image lies there.
    """
    for entry in _entries(root, parent, layout):
        if entry.is_dir() and not entry.is_symlink():
            yield entry
        elif entry.suffix.lower() in SUFFIXES:
            raise CatalogError(f"{entry} is a file; expected {expected} there: {EXPECTED}")
        elif entry.is_symlink():
            layout.set_aside.append(_linked(root, entry))
        elif parent != root:
            reason = f"not an image, and not {expected}"
            layout.others.append(SetAside(path=_relative(root, entry), reason=reason))


def _entries(root: Path, folder: Path, layout: Layout) -> Iterator[Path]:
    """Entries of a folder that are not hidden, sorted; those that cannot be written as text are set aside.

    Raises:
        CatalogError: If the folder cannot be listed.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise CatalogError(f"{folder} cannot be listed: {error.strerror or error}") from error
    for entry in entries:
        relative = _relative(root, entry)
        if relative != _printable(relative) or "\\" in entry.name:
            reason = "its name is not valid UTF-8, or holds a backslash; rename it"
            layout.set_aside.append(SetAside(path=_printable(relative), reason=reason))
        elif not entry.name.startswith("."):
            yield entry


def _linked(root: Path, path: Path) -> SetAside:
    """Say where a link leads that is not followed."""
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return SetAside(path=_relative(root, path), reason="a link to nothing, or a loop of links; not followed")
    if not target.is_relative_to(root.resolve()):
        return SetAside(path=_relative(root, path), reason="a link out of the data root; not followed")
    if path.parent.resolve().is_relative_to(target):
        return SetAside(path=_relative(root, path), reason="a loop: links to a folder that it lies in; not followed")
    return SetAside(path=_relative(root, path), reason="a linked folder; not followed")


def _relative(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
