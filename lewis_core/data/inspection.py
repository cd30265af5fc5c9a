"""Open every file of a data root, in parallel: usable images, and what is set aside with the reason."""

import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lewis_core.config.base import Runtime
from lewis_core.config.data import CatalogConfig
from lewis_core.data.images import NOT_AN_IMAGE, SUFFIXES, inspect_image
from lewis_core.data.layout import FoundFile, Listing, SetAside
from lewis_core.errors import ImageError, QuarantineError
from lewis_core.records import ImageRecord, save_jsonl
from lewis_core.reporting import Reporter, track

_NAMED = 5
"""Files named in an error message."""


@dataclass(frozen=True)
class Inspected:
    """The usable images of a data root, and what was set aside."""

    images: tuple[tuple[FoundFile, ImageRecord], ...]
    """Sorted by path."""
    unusable: tuple[SetAside, ...]
    """Images that cannot be used, and links; they count for the limit."""
    others: tuple[SetAside, ...]
    """Files that do not claim to be images, such as notes; they do not count."""


def inspect_files(
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


def check_quarantine(inspected: Inspected, data_root: Path, config: CatalogConfig, work_dir: Path | None) -> None:
    """Stop when too much is wrong.

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
