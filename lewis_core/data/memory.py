"""What earlier catalogs of the same data root found out about its files, so that only new and changed ones are read.

A file is the same while its size, both its times of change and its inode are. The time of change of the entry itself
cannot be set by anybody, so a file that was replaced, or written in place with its old date, is read again; and what
changed within two seconds before the files were listed is not remembered, because it may change once more within the
same tick of the file system's clock. Only usable images are remembered: what is wrong may be repaired.

What was found is written while the work goes on, so a killed run loses at most a second of it. Several runs may share
a memory: each writes a file of its own, and the last one to finish keeps what it knows.
"""

import json
import logging
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

import PIL

from lewis_core.artifacts import digest_file, digest_json
from lewis_core.data import images, looks, plain_jpeg
from lewis_core.data.looks import Examined, Look

logger = logging.getLogger(__name__)
SETTLED_NS = 2_000_000_000
"""Files that changed later than this before they were listed are not remembered."""
_PER_LINE = 1000
"""Photos of a line, at most."""
Stamp = tuple[int, int, int, int]


class FileMemory:
    """Results by path and stamp, kept in a folder; a context manager.

    Args:
        folder: Folder of the memory, made when needed.
        data_root: Whose files; another root has another memory.
        stamps: Stamp of each file, by path.
        listed_ns: When they were listed, in ns since the epoch.
    """

    def __init__(self, folder: Path, data_root: Path, stamps: Mapping[str, Stamp], listed_ns: int) -> None:
        self._stamps, self._listed_ns = stamps, listed_ns
        self._known: dict[str, tuple[Stamp, Examined]] = {}
        self._reader = reader_digest()
        self._folder = folder / digest_json(str(data_root.resolve()))[:24]
        self._folder.mkdir(parents=True, exist_ok=True)
        self._part = self._folder / f"{uuid.uuid4().hex}.jsonl"
        self._loaded: list[Path] = []

    def __enter__(self) -> "FileMemory":
        """Load what is known."""
        self._loaded = sorted(self._folder.glob("*.jsonl"))
        for path in self._loaded:
            self._load(path)
        self._file = self._part.open("w", encoding="utf-8")
        self._file.write(json.dumps([self._reader]) + "\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file of this run; it is loaded next time."""
        self._file.close()

    def recall(self, path: str) -> Examined | None:
        """What is known of a file, if it is still the same."""
        stamp, found = self._known.get(path, (None, None))
        return found if stamp == self._stamps[path] else None

    def remember(self, outcomes: Iterable[tuple[str, Examined | str]]) -> None:
        """Keep what was found out about usable images, also for other runs."""
        settled: dict[str, tuple[Stamp, Examined]] = {}
        for path, found in outcomes:
            stamp = self._stamps[path]
            if not isinstance(found, str) and stamp[2] < self._listed_ns - SETTLED_NS:
                settled[path] = (stamp, found)
        self._known |= settled
        self._file.write(_to_line(settled))
        self._file.flush()

    def keep_only(self, paths: Iterable[str]) -> None:
        """Drop files that are gone, and put all that is known into one file in place of the loaded ones."""
        if not self._loaded:
            return  # the file of this run is all there is
        whole = self._part.with_suffix(".tmp")
        with whole.open("w", encoding="utf-8") as file:
            file.write(json.dumps([self._reader]) + "\n")
            known = [(path, self._known[path]) for path in paths if path in self._known]
            file.writelines(_to_line(dict(known[at : at + _PER_LINE])) for at in range(0, len(known), _PER_LINE))
        whole.rename(self._part)
        for path in self._loaded:
            path.unlink(missing_ok=True)

    def _load(self, path: Path) -> None:
        """Load one file; one that another version wrote is passed over, and so is a line that was cut off."""
        try:
            with path.open(encoding="utf-8") as file:
                if json.loads(next(file, "null")) != [self._reader]:
                    return
                for line in file:
                    for name, stamp, sha256, width, height, bits, colours in json.loads(line):
                        look = Look(int(bits, 16), bytes.fromhex(colours))
                        self._known[name] = (tuple(stamp), Examined(sha256, width, height, look))
        except FileNotFoundError:  # another run has just put it together with its own
            return
        except (ValueError, TypeError):
            logger.info("%s ends in the middle of a line; what is missing is read again", path.name)


def _to_line(known: Mapping[str, tuple[Stamp, Examined]]) -> str:
    """One line of a file of the memory: a list with an entry for each of many photos."""
    entries = [
        [path, stamp, sha256, width, height, f"{look.bits:016x}", look.colours.hex()]
        for path, (stamp, (sha256, width, height, look)) in known.items()
    ]
    return json.dumps(entries) + "\n"


def reader_digest() -> str:
    """Digest of what decides the results beside the files: this package's reading code, and Pillow."""
    sources = [digest_file(Path(module.__file__)) for module in (images, plain_jpeg, looks) if module.__file__]
    return digest_json([*sources, PIL.__version__])
