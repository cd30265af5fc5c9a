"""Photos as data URIs, small enough that dozens of them fit into one page."""

import base64
import io
import logging
from pathlib import Path

from PIL import Image

from lewis_core.data.images import load_rgb
from lewis_core.errors import ImageError

logger = logging.getLogger(__name__)
LARGE, MEDIUM, SMALL = 380, 220, 144
"""Longest side in pixels: a described photo, one in a pair, and a candidate's thumbnail."""
QUALITY = 84


class PhotoAlbum:
    """Embeds photos of one data root and remembers which could not be read.

    Args:
        root: Data root that image paths are relative to; ``None`` when the photos are not at hand.
    """

    def __init__(self, root: Path | None) -> None:
        self._root = root
        self._uris: dict[tuple[str, int], str | None] = {}
        self._reasons: dict[str, str] = {}

    @property
    def missing(self) -> dict[str, str]:
        """Photos that were asked for and could not be read: path → reason, sorted by path."""
        return dict(sorted(self._reasons.items()))

    def embed(self, path: str, longest: int = LARGE) -> str | None:
        """Return a photo as a ``data:image/jpeg`` URI.

        Args:
            path: Relative to the data root.
            longest: The photo is reduced until its longest side has at most this many pixels.

        Returns:
            The URI, or ``None`` if the photo cannot be read; the page then says so in its place.
        """
        if (path, longest) not in self._uris:
            self._uris[path, longest] = self._read(path, longest)
        return self._uris[path, longest]

    def _read(self, path: str, longest: int) -> str | None:
        if self._root is None:
            self._reasons[path] = "the photos are not at hand"
            return None
        try:
            image = load_rgb(self._root, path)
        except ImageError as error:
            self._reasons[path] = error.reason
            logger.warning("report: %s", error)
            return None
        return _encode(image, longest)


def _encode(image: Image.Image, longest: int) -> str:
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
