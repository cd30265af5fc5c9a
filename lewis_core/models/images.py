"""Image references: what a client may call an image, and the file behind it, never outside of the allowed folders.

A reference is a path relative to the first folder, or, which is better, the digest of the file's bytes
(``sha256:<64 hex digits>``, looked up in a catalog): then the answer is about exactly these bytes, or an error.
Addresses of other machines are never fetched. Imports no torch.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

from PIL import Image

from lewis_core.artifacts import digest_file
from lewis_core.data.limits import MAX_IMAGE_PIXELS
from lewis_core.errors import ImageAccessError, ImageError
from lewis_core.records import Catalog, ImageRecord

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|(data|file|blob):")
_MAX_LENGTH = 4096
Stamp = tuple[int, ...]


class ImageSource(Protocol):
    """Where a model gets its images from."""

    def load(self, reference: str) -> Image.Image:
        """Decode an image as RGB, upright."""

    def digest(self, reference: str) -> str:
        """Name an image's content; equal digests mean equal images."""


class ImageFolder:
    """Images below allowed folders.

    Args:
        root: The folder that references are relative to. Links are followed, and must stay inside the allowed folders.
        others: Folders that are allowed as well; a reference that the first lacks is looked for in them, in order.
        catalog: Photos of the first folder that can be named by their digest.
        max_pixels: Larger images are refused before they are decoded.
    """

    def __init__(
        self,
        root: Path,
        others: Sequence[Path] = (),
        catalog: Catalog | None = None,
        *,
        max_pixels: int = MAX_IMAGE_PIXELS,
    ) -> None:
        self._roots = [root.resolve(), *(other.resolve() for other in others)]
        self._max_pixels = max_pixels
        self._paths = {image.sha256: image.path for image in _images(catalog)} if catalog else {}
        self._digests: dict[Path, tuple[Stamp, str]] = {}

    def resolve(self, reference: str) -> Path:
        """Find the file behind a reference.

        Raises:
            ImageAccessError: If the reference is absolute, climbs with ``..``, is an address, or leads outside of the
                allowed folders through a link.
            ImageError: If there is no such file.
        """
        shown = reference if len(reference) <= 200 else reference[:200] + "…"
        if known := _DIGEST.fullmatch(reference):
            if known[1] not in self._paths:
                raise ImageError(shown, "no image of the catalog has this digest")
            return self._find(self._paths[known[1]], shown)
        if len(reference) > _MAX_LENGTH or _ADDRESS.match(reference):
            raise ImageAccessError(
                shown, "an image reference is a relative path or sha256:<digest>; nothing is fetched"
            )
        pure = PurePosixPath(reference)
        if pure.is_absolute() or ".." in pure.parts or "\\" in reference or "\0" in reference:
            raise ImageAccessError(shown, "an image reference is a path relative to the image root, without '..'")
        return self._find(reference, shown)

    def _find(self, relative: str, shown: str) -> Path:
        missing: OSError | RuntimeError | None = None
        for root in self._roots:
            try:
                path = (root / relative).resolve(strict=True)
            except (OSError, RuntimeError, UnicodeError) as error:
                missing = missing or (error if isinstance(error, OSError | RuntimeError) else OSError(str(error)))
                continue
            if not any(path.is_relative_to(allowed) for allowed in self._roots):
                raise ImageAccessError(shown, "the link leads outside of the image root")
            if not path.is_file():
                raise ImageError(shown, "not a file")
            return path
        reason = missing.strerror or "not a name" if isinstance(missing, OSError) else "a loop of links"
        raise ImageError(shown, f"no such image: {reason}") from missing

    def load(self, reference: str) -> Image.Image:
        """Decode an image as RGB, upright.

        Raises:
            ImageAccessError: As :meth:`resolve`.
            ImageError: If it is missing or cannot be decoded, or has changed since its digest was asked for.
        """
        from lewis_core.data.images import load_file

        path = self.resolve(reference)
        known = self._digests.get(path)
        named = _DIGEST.fullmatch(reference)
        expected = named[1] if named else known[1] if known else None
        try:
            return load_file(path, reference, self._max_pixels, expected)
        except ImageError:
            self._digests.pop(path, None)
            raise

    def digest(self, reference: str) -> str:
        """Digest of the file's bytes, read again only when the file itself was changed or replaced.

        Raises:
            ImageAccessError: As :meth:`resolve`.
            ImageError: If it is missing or cannot be read, or is no longer what its digest says.
        """
        path = self.resolve(reference)
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_dev)
            known = self._digests.get(path)
            if known is None or known[0] != stamp:
                known = self._digests[path] = (stamp, digest_file(path))
        except OSError as error:
            raise ImageError(reference, f"cannot be read: {error.strerror}") from error
        if (named := _DIGEST.fullmatch(reference)) and named[1] != known[1]:
            raise ImageError(reference, "the file behind this digest was changed")
        return known[1]


def _images(catalog: Catalog) -> Iterable[ImageRecord]:
    for concept in catalog.concepts:
        for images in (concept.train, concept.test, concept.negative, concept.hard_negative):
            yield from images
    yield from catalog.negatives
