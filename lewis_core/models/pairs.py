"""Two photos as one picture, side by side, for models and services that take one image a question.

A reference to a pair names two images (:func:`pair_reference`); each is found, and refused, as if it stood alone.
"""

import hashlib
import json

from PIL import Image

from lewis_core.errors import ImageError
from lewis_core.models.images import ImageSource

PREFIX = "pair:"
GAP_SHARE = 0.03
"""Width of the white gap between the photos, as a share of their height."""


def pair_reference(left: str, right: str) -> str:
    """Name the picture of two images side by side."""
    return PREFIX + json.dumps([left, right], ensure_ascii=False)


class PairedImages:
    """Images of a source, and pairs of them.

    Args:
        source: Where single images come from.
    """

    def __init__(self, source: ImageSource) -> None:
        self._source = source

    def load(self, reference: str) -> Image.Image:
        """Decode an image, or put two together.

        Raises:
            ImageError: If an image cannot be used, or a pair does not name two.
        """
        parts = _split(reference)
        if parts is None:
            return self._source.load(reference)
        return side_by_side(self._source.load(parts[0]), self._source.load(parts[1]))

    def digest(self, reference: str) -> str:
        """Name an image's content; of a pair, that of both and their order.

        Raises:
            ImageError: As :meth:`load`.
        """
        parts = _split(reference)
        if parts is None:
            return self._source.digest(reference)
        both = "|".join(self._source.digest(part) for part in parts)
        return hashlib.sha256(f"{PREFIX}{both}".encode()).hexdigest()


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    """Put two images next to one another, the larger one reduced to the height of the other; no distortion."""
    height = min(left.height, right.height)
    shown = [
        image.resize((max(1, round(image.width * height / image.height)), height), Image.Resampling.LANCZOS)
        for image in (left, right)
    ]
    gap = max(1, round(GAP_SHARE * height))
    picture = Image.new("RGB", (shown[0].width + gap + shown[1].width, height), "white")
    picture.paste(shown[0], (0, 0))
    picture.paste(shown[1], (shown[0].width + gap, 0))
    return picture


def _split(reference: str) -> tuple[str, str] | None:
    if not reference.startswith(PREFIX):
        return None
    try:
        parts = json.loads(reference[len(PREFIX) :])
    except ValueError:
        parts = None
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise ImageError(reference, f"expected {PREFIX} and a JSON list of two image references")
    return parts[0], parts[1]
