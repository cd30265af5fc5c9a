"""The photos that the speaker sees: files below the data root, or bytes stored in the data set itself."""

import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageOps, UnidentifiedImageError

from lewis_core.data.images import to_rgb
from lewis_core.errors import ImageError
from lewis_core.models.images import ImageFolder, ImageSource

if TYPE_CHECKING:
    from datasets import Dataset


class StoredPhotos:
    """Photos whose bytes lie in a data set, referred to by their digest.

    Args:
        rows: Table with undecoded images in the column ``query``.
        row_by_digest: Where each photo is.
    """

    def __init__(self, rows: "Dataset", row_by_digest: dict[str, int]) -> None:
        self._rows, self._row_by_digest = rows, row_by_digest

    def load(self, reference: str) -> Image.Image:
        """Decode a photo as RGB, upright.

        Raises:
            ImageError: If the stored bytes are no image.
        """
        data = self._rows[self._row_by_digest[reference]]["query"]["bytes"]
        try:
            with Image.open(io.BytesIO(data)) as image:
                return to_rgb(ImageOps.exif_transpose(image))
        except (UnidentifiedImageError, OSError, ValueError) as error:
            raise ImageError(reference, f"the data set's bytes cannot be decoded: {error}") from error

    def digest(self, reference: str) -> str:
        """A photo's reference is its digest."""
        return reference


def separate_photos(rows: "Dataset", data_root: Path) -> tuple["Dataset", ImageSource]:
    """Make a data set whose column ``query`` is text, and the source that its references lead to.

    Args:
        rows: Training rows; ``query`` holds paths below the data root, or images.
        data_root: Folder of photos.

    Returns:
        Rows, unchanged if ``query`` is text already, and where their photos are.
    """
    from datasets import Image as ImageFeature

    if "query" not in rows.features or not isinstance(rows.features["query"], ImageFeature):
        return rows, ImageFolder(data_root)
    stored = rows.cast_column("query", ImageFeature(decode=False))
    digests = [hashlib.sha256(item["bytes"]).hexdigest() for item in stored["query"]]
    source = StoredPhotos(stored, {digest: row for row, digest in enumerate(digests)})
    return rows.remove_columns("query").add_column("query", digests), source
