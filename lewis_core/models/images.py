"""Image references: paths relative to one folder, never outside of it. Imports no torch."""

from pathlib import Path, PurePosixPath
from typing import Protocol

from PIL import Image

from lewis_core.artifacts import digest_file
from lewis_core.errors import ImageAccessError, ImageError


class ImageSource(Protocol):
    """Where a model gets its images from."""

    def load(self, reference: str) -> Image.Image:
        """Decode an image as RGB, upright."""

    def digest(self, reference: str) -> str:
        """Name an image's content; equal digests mean equal images."""


class ImageFolder:
    """Images below one folder, referred to by relative paths with forward slashes.

    Args:
        root: The folder. Links are followed, and must stay inside it.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._digests: dict[str, tuple[tuple[int, int], str]] = {}

    def resolve(self, reference: str) -> Path:
        """Find the file behind a reference.

        Raises:
            ImageAccessError: If the reference is absolute, climbs with ``..``, or leads outside through a link.
            ImageError: If there is no such file.
        """
        pure = PurePosixPath(reference)
        if pure.is_absolute() or ".." in pure.parts or "\\" in reference or "\0" in reference:
            raise ImageAccessError(reference, "an image reference is a path relative to the image root, without '..'")
        try:
            path = (self._root / pure).resolve(strict=True)
        except (OSError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "a loop of links"
            raise ImageError(reference, f"no such image: {reason}") from error
        if not path.is_relative_to(self._root):
            raise ImageAccessError(reference, "the link leads outside of the image root")
        if not path.is_file():
            raise ImageError(reference, "not a file")
        return path

    def load(self, reference: str) -> Image.Image:
        """Decode an image as RGB, upright.

        Raises:
            ImageAccessError: As :meth:`resolve`.
            ImageError: If it is missing or cannot be decoded.
        """
        from lewis_core.data.images import load_rgb

        path = self.resolve(reference)
        return load_rgb(self._root, path.relative_to(self._root).as_posix())

    def digest(self, reference: str) -> str:
        """Digest of the file's bytes, read again only when the file's size or time has changed.

        Raises:
            ImageAccessError: As :meth:`resolve`.
            ImageError: If it is missing or cannot be read.
        """
        path = self.resolve(reference)
        try:
            stat = path.stat()
            stamp = (stat.st_mtime_ns, stat.st_size)
            known = self._digests.get(reference)
            if known is None or known[0] != stamp:
                known = self._digests[reference] = (stamp, digest_file(path))
        except OSError as error:
            raise ImageError(reference, f"cannot be read: {error.strerror}") from error
        return known[1]
