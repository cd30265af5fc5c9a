"""List a data root once: every folder and file with its size and times, nothing opened.

Layouts, the fingerprint of a data root and the catalog's memory of what it has read all work on this list. Hidden
entries are ignored, linked folders are never entered, and names that cannot be passed on as text are set aside.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lewis_core.artifacts import digest_json
from lewis_core.errors import CatalogError
from lewis_core.records import Record

BAD_NAME = "its name is not valid UTF-8, or holds a backslash; rename it"


class SetAside(Record):
    """A line of ``quarantine.jsonl``: something that is not used, and why."""

    path: str
    """Relative to the data root."""
    reason: str


class File(NamedTuple):
    """A file, or a link to one; where a link leads is looked at when it is opened."""

    path: str
    """Relative to the data root, with forward slashes."""
    stamp: tuple[int, int, int, int]
    """Size, time of change (ns), time of change of the entry itself (ns), inode; of what a link leads to."""

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True, eq=False)
class Folder:
    """A folder and everything below it, sorted by name."""

    path: str
    """Relative to the data root; empty for the root itself."""
    folders: tuple["Folder", ...]
    files: tuple[File, ...]
    links: tuple[tuple[File, str], ...]
    """Linked folders and links to nothing beside folders, with the reason why they are not entered."""
    unnamed: tuple[SetAside, ...]
    """Entries whose names cannot be passed on."""

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.rpartition("/")[2]

    def folder(self, name: str) -> "Folder | None":
        """Find a folder in this one."""
        return next((folder for folder in self.folders if folder.name == name), None)

    def file(self, name: str) -> File | None:
        """Find a file in this folder."""
        return next((file for file in self.files if file.name == name), None)

    def walk(self) -> Iterator["Folder"]:
        """This folder and all below it."""
        yield self
        for folder in self.folders:
            yield from folder.walk()


def find_stamps(root: Folder) -> dict[str, tuple[int, int, int, int]]:
    """Stamp of every file, by path."""
    return {file.path: file.stamp for folder in root.walk() for file in folder.files}


def read_tree(root: Path) -> Folder:
    """List a data root.

    Raises:
        CatalogError: If the root is missing or a file, or a folder cannot be listed; names it.
    """
    check_root(root)
    return _read_folder(root.resolve(), root, "")


def scan_tree(root: Path) -> str:
    """Fingerprint a data root without opening its files: names, sizes and times of change.

    Returns:
        A digest (hex) that changes when a file is added, removed, renamed or written.

    Raises:
        CatalogError: If the root is missing, or a folder cannot be listed.
    """
    entries = []
    for folder in read_tree(root).walk():
        entries += [[file.path, *file.stamp[:2]] for file in (*folder.files, *(link for link, _ in folder.links))]
        entries += [[entry.path, 0, 0] for entry in folder.unnamed]
    return digest_json(sorted(entries))


def check_root(root: Path) -> None:
    """Check that a data root is a folder.

    Raises:
        CatalogError: If it is not; names it.
    """
    if not root.exists():
        raise CatalogError(f"no data root at {root}; expected a folder of photos")
    if not root.is_dir():
        raise CatalogError(f"the data root {root} is a file; expected a folder of photos")


def _read_folder(real_root: Path, place: Path, path: str) -> Folder:
    """List one folder and what is below it.

    Raises:
        CatalogError: If it cannot be listed.
    """
    try:
        with os.scandir(place) as scan:
            entries = sorted((entry for entry in scan if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise CatalogError(f"{place} cannot be listed: {error.strerror or error}; make it readable") from error
    folders: list[Folder] = []
    files: list[File] = []
    links: list[tuple[File, str]] = []
    unnamed: list[SetAside] = []
    for entry in entries:
        below = f"{path}/{entry.name}" if path else entry.name
        if entry.name != _printable(entry.name) or "\\" in entry.name:
            unnamed.append(SetAside(path=_printable(below), reason=BAD_NAME))
        elif entry.is_dir(follow_symlinks=False):
            folders.append(_read_folder(real_root, Path(entry.path), below))
        elif entry.is_symlink() and (reason := _explain_link(real_root, Path(entry.path))):
            links.append((File(below, _stamp(entry, follow=False)), reason))
        else:
            files.append(File(below, _stamp(entry, follow=True)))
    return Folder(path, tuple(folders), tuple(files), tuple(links), tuple(unnamed))


def _stamp(entry: "os.DirEntry[str]", follow: bool) -> tuple[int, int, int, int]:
    """Size, times and inode of an entry; a file that vanished meanwhile has none.

    Raises:
        CatalogError: If the entry cannot be looked at.
    """
    try:
        status = entry.stat(follow_symlinks=follow)
    except FileNotFoundError:
        return (0, 0, 0, 0)
    except OSError as error:
        raise CatalogError(f"{entry.path} cannot be looked at: {error.strerror or error}") from error
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def _explain_link(real_root: Path, path: Path) -> str | None:
    """Say why a link is not entered; ``None`` for a link to a file."""
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return "a link to nothing, or a loop of links; not followed"
    if not target.is_dir():
        return None
    if not target.is_relative_to(real_root):
        return "a link out of the data root; not followed"
    if path.parent.resolve().is_relative_to(target):
        return "a loop: links to a folder that it lies in; not followed"
    return "a linked folder; not followed"


def _printable(name: str) -> str:
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode("utf-8")
