"""Open every file of a data root, in parallel: usable images, and what is set aside with the reason."""

import logging
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lewis_core.config.data import CatalogConfig
from lewis_core.data.images import NOT_AN_IMAGE, SUFFIXES
from lewis_core.data.layout import FoundFile, Listing, SetAside
from lewis_core.data.looks import Examined, Look
from lewis_core.data.memory import FileMemory
from lewis_core.data.readers import Readers
from lewis_core.errors import QuarantineError
from lewis_core.records import ImageRecord, save_jsonl
from lewis_core.reporting import Reporter

logger = logging.getLogger(__name__)
Usable = tuple[ImageRecord, Look]
"""An image, and what it looks like."""
_NAMED = 5
"""Files named in a message."""


@dataclass(frozen=True)
class Inspected:
    """The usable images of a data root, and what was set aside."""

    images: tuple[tuple[FoundFile, ImageRecord], ...]
    """Sorted by path."""
    unusable: tuple[SetAside, ...]
    """Images that cannot be used, and links; they count for the limit."""
    others: tuple[SetAside, ...]
    """Files that do not claim to be images, such as notes; they do not count."""
    looks: Mapping[str, Look]
    """What each picture looks like, by digest."""
    num_read: int
    """Files that were opened; the others were remembered."""


def inspect_files(
    listing: Listing,
    data_root: Path,
    config: CatalogConfig,
    readers: Readers,
    reporter: Reporter,
    memory: FileMemory | None = None,
) -> Inspected:
    """Open every file that is not remembered.

    Args:
        listing: The files.
        data_root: Folder of photos.
        config: Largest image.
        readers: Open files; the result does not depend on how many they are.
        reporter: Receives progress.
        memory: What is known already; receives what is found.

    Returns:
        Usable images with their looks, and what is set aside.
    """
    outcomes: dict[str, Usable | str] = {}
    if memory is not None:
        for file in listing.files:
            known = memory.recall(file.path)
            if known is not None and known.width * known.height <= config.max_image_pixels:
                outcomes[file.path] = _record(file.path, known)
    todo = [file.path for file in listing.files if file.path not in outcomes]
    num_read = len(todo)
    done = len(outcomes)
    reporter.progress(done, len(listing.files), "images")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # about metadata; what matters raises
        for chunk in readers.examine(todo, data_root, config.max_image_pixels):
            outcomes.update((path, _record(path, found)) for path, found in chunk)
            if memory is not None:
                memory.remember(chunk)
            done += len(chunk)
            reporter.progress(done, len(listing.files), "images")
    if memory is not None:
        memory.keep_only(file.path for file in listing.files)
    return _sort_outcomes(listing, outcomes, num_read)


def _record(path: str, found: Examined | str) -> Usable | str:
    """Make the record of a usable image at once, while other processes read."""
    if isinstance(found, str):
        return found
    sha256, width, height, look = found
    return ImageRecord(path=path, sha256=sha256, width=width, height=height), look


def _sort_outcomes(listing: Listing, outcomes: Mapping[str, Usable | str], num_read: int) -> Inspected:
    """Tell usable images, unusable ones and other files apart."""
    images: list[tuple[FoundFile, ImageRecord]] = []
    looks: dict[str, Look] = {}
    unusable, others = list(listing.set_aside), list(listing.others)
    for file in listing.files:
        outcome = outcomes[file.path]
        if isinstance(outcome, str):
            claims = Path(file.path).suffix.lower() in SUFFIXES or outcome != NOT_AN_IMAGE
            (unusable if claims else others).append(SetAside(path=file.path, reason=outcome))
        else:
            image, look = outcome
            looks[image.sha256] = look
            images.append((file, image))
    return Inspected(
        tuple(images), tuple(sorted(unusable, key=_path)), tuple(sorted(others, key=_path)), looks, num_read
    )


def _path(entry: SetAside) -> str:
    return entry.path


def check_quarantine(inspected: Inspected, data_root: Path, config: CatalogConfig, work_dir: Path | None) -> None:
    """Stop when too much is wrong, and name what is wrong otherwise.

    Args:
        inspected: What was found.
        data_root: Folder of photos.
        config: The limit.
        work_dir: Receives the whole list, ``quarantine.jsonl``, when the limit is passed.

    Raises:
        QuarantineError: If the share of unusable images is above the limit; counts the reasons and names files.
    """
    bad, total = len(inspected.unusable), len(inspected.unusable) + len(inspected.images)
    if bad <= config.max_quarantine_frac * total:
        if bad:
            named = "; ".join(f"{entry.path}: {entry.reason}" for entry in inspected.unusable[:_NAMED])
            more = f"; … and {bad - _NAMED} more" if bad > _NAMED else ""
            logger.warning(
                "%d of %d images cannot be used (all: the catalog's quarantine.jsonl): %s%s", bad, total, named, more
            )
        return
    where = ""
    if work_dir is not None:
        save_jsonl(work_dir / "quarantine.jsonl", inspected.unusable)
        where = f" (all of them: {work_dir / 'quarantine.jsonl'})"
    reasons = Counter(entry.reason for entry in inspected.unusable).most_common(_NAMED)
    raise QuarantineError(
        "\n".join(
            [
                f"{bad} of {total} images in {data_root} cannot be used, more than catalog.max_quarantine_frac = "
                f"{config.max_quarantine_frac:g} allows; repair or remove them, or raise the limit{where}:",
                *(f"  {entry.path}: {entry.reason}" for entry in inspected.unusable[:_NAMED]),
                *([f"  … and {bad - _NAMED} more"] if bad > _NAMED else []),
                *(f"  {count} × {reason}" for reason, count in reasons if count > 1),
            ]
        )
    )
