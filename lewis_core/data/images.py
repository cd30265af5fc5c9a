"""Open one image safely: what it is, whether it is whole, and its pixels as RGB.

Content decides, never the file's name. What cannot be used raises :class:`~lewis_core.errors.ImageError` with a
reason; nothing is replaced or silently shortened (no first frame of an animation, no gray half of a truncated file).
"""

import errno
import hashlib
import io
import os
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from lewis_core.data.limits import MAX_IMAGE_PIXELS as MAX_PIXELS
from lewis_core.data.plain_jpeg import decode_plain, read_plain_size
from lewis_core.errors import ImageError

if TYPE_CHECKING:  # worker processes import this module, and each would load pydantic
    from lewis_core.records import ImageRecord

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")
"""Formats that are opened."""
UNREAD_SUFFIXES = frozenset({".heic", ".heif", ".avif", ".jp2", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".svg"})
"""Names of images that have to be converted first."""
SUFFIXES = UNREAD_SUFFIXES | {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"}
"""Names that promise an image; files with other names are images if their content is one."""
MAX_ASPECT = 200
"""Longer strips are refused, as Qwen's image processors refuse them."""
NOT_AN_IMAGE = "not an image"
_MAX_BYTES_PER_PIXEL = 8
_FLOAT_MODES = frozenset({"F"})
_BROKEN = (OSError, SyntaxError, ValueError, TypeError, IndexError, OverflowError, struct.error, zlib.error)
"""What Pillow's decoders raise on damaged files."""
_SMALLEST = (36, 32)
"""JPEG files are examined at no fewer pixels than this."""
_TURNED, _SWAPPED = range(2, 9), range(5, 9)
"""EXIF orientations that turn or mirror an image; those that swap width and height."""
GRID = (9, 8)
"""Width and height of the grid to which pictures are reduced to see what they look like, in cells."""
_open_lock = threading.Lock()
T = TypeVar("T")


class Sampled(NamedTuple):
    """What is known of a file that is one whole image."""

    sha256: str
    width: int
    """Pixels, after EXIF orientation."""
    height: int
    cells: bytes
    """What it looks like: see :func:`sample_cells`."""


class Photo(NamedTuple):
    """What a record of the catalog says about a photo, for processes that do not load records."""

    path: str
    """Below the data root, with forward slashes."""
    sha256: str
    width: int
    """Pixels, after EXIF orientation."""
    height: int


def sample_image(root: Path, relative: str, max_pixels: int = MAX_PIXELS) -> Sampled:
    """Check that a file is one whole image, and sample what it looks like.

    All of the file is decoded; of JPEG files, all data are decoded but the pixels are made at a smaller size, which
    finds the same damage in less time. Pillow's warnings are left to the caller: to silence them for each of many files
    costs more than to read small ones.

    Args:
        root: Data root.
        relative: Path below it, with forward slashes; of the folders on the way none may be a link, as in a listing.
        max_pixels: Larger images are refused before they are decoded.

    Raises:
        ImageError: If the file cannot be used; the reason is for people.
    """
    data = _read_regular(f"{root}/{relative}", relative, max_pixels, follow=False)
    if data is None:  # a link
        data = _read(root, relative, max_pixels)
    (width, height), cells = _sample_plain(data, max_pixels) or _decode(
        relative, data, max_pixels, _sample, silence=False
    )
    return Sampled(hashlib.sha256(data).hexdigest(), width, height, cells)


def _sample_plain(data: bytes, max_pixels: int) -> tuple[tuple[int, int], bytes] | None:
    """Size and sample of a plain JPEG file, as of :func:`_sample`; ``None`` for files that are not, or not allowed."""
    size = read_plain_size(data)
    if size is None or size[0] * size[1] > max_pixels or max(size) > MAX_ASPECT * min(size):
        return None
    image = decode_plain(data, size, _SMALLEST)
    return None if image is None else (size, sample_cells(image))


def _sample(image: Image.Image) -> tuple[tuple[int, int], bytes]:
    """Decode an opened image as small as possible: its upright size, and a sample of its colours."""
    size, orientation = image.size, 1
    if image.format != "JPEG" or "exif" in image.info or "xmp" in image.info:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    image.draft(None, _SMALLEST)
    image.load()
    if orientation in _TURNED:
        image = ImageOps.exif_transpose(image)
    plain = image.mode in {"RGB", "L"} and not image.has_transparency_data
    return (size[::-1] if orientation in _SWAPPED else size), sample_cells(image if plain else to_rgb(image))


def sample_cells(image: Image.Image) -> bytes:
    """Reduce an upright image (RGB or gray) to the colours of :data:`GRID`, row by row: 216 bytes."""
    cells = image.resize(GRID, Image.Resampling.BILINEAR)
    return (cells if cells.mode == "RGB" else cells.convert("RGB")).tobytes()


def load_rgb(data_root: Path, image: "ImageRecord | str", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Load an image as RGB pixels, turned upright by its EXIF orientation.

    Args:
        data_root: Data root.
        image: A record of the catalog, or a path below the data root.
        max_pixels: Larger images are refused before they are decoded (records carry their size already).

    Returns:
        An RGB image; transparent parts are white.

    Raises:
        ImageError: If the file cannot be used, or is no longer the one that the record describes.
    """
    if isinstance(image, str):
        return _decode(image, _read(data_root, image, max_pixels), max_pixels, _upright_rgb)
    limit = max(max_pixels, image.width * image.height)
    return _decode(image.path, read_image_bytes(data_root, image), limit, _upright_rgb)


def load_file(file: Path, shown: str, max_pixels: int = MAX_PIXELS, sha256: str | None = None) -> Image.Image:
    """Load one regular file, wherever it is, as RGB pixels, upright.

    Args:
        file: The file; the caller has made sure that it may be read.
        shown: What errors call it.
        max_pixels: Larger images are refused before they are decoded.
        sha256: Digest that the bytes must have, if it is known.

    Raises:
        ImageError: If the file cannot be used, or is no longer the one with this digest.
    """
    data = _read_regular(str(file), shown, max_pixels, follow=False)
    if data is None or (sha256 is not None and hashlib.sha256(data).hexdigest() != sha256):
        raise ImageError(shown, "the file was changed while it was in use; ask again")
    return _decode(shown, data, max_pixels, _upright_rgb)


def load_thumbnail(data_root: Path, image: "ImageRecord | Photo", size: int) -> Image.Image:
    """Load an image as RGB pixels, upright, at most ``size`` pixels wide and high.

    Raises:
        ImageError: If the file cannot be used, or is no longer the one that the record describes.
    """

    def shrink(opened: Image.Image) -> Image.Image:
        opened.draft(None, (2 * size, 2 * size))
        small = _upright_rgb(opened)
        small.thumbnail((size, size), Image.Resampling.BICUBIC)
        return small

    return _decode(image.path, read_image_bytes(data_root, image), max(MAX_PIXELS, image.width * image.height), shrink)


def _upright_rgb(image: Image.Image) -> Image.Image:
    image.load()
    return to_rgb(ImageOps.exif_transpose(image))


def read_image_bytes(data_root: Path, image: "ImageRecord | Photo") -> bytes:
    """Read the file that a record describes.

    Raises:
        ImageError: If it cannot be read, or is no longer the same.
    """
    data = _read(data_root, image.path, max(MAX_PIXELS, image.width * image.height))
    if hashlib.sha256(data).hexdigest() != image.sha256:
        raise ImageError(image.path, "changed since the catalog was built; build the catalog again")
    return data


def _read(root: Path, relative: str, max_pixels: int) -> bytes:
    """Read a regular file below the root, also through links that stay inside."""
    try:
        path = (root / relative).resolve(strict=True)
        inside = path.is_relative_to(root.resolve())
    except RuntimeError as error:  # what a loop of links is to pathlib
        raise ImageError(relative, "a loop of links") from error
    except FileNotFoundError as error:
        raise ImageError(relative, "missing, or a link to nothing") from error
    except OSError as error:
        raise ImageError(relative, f"cannot be read: {error.strerror or error}") from error
    if not inside:
        raise ImageError(relative, "a link out of the data root; links are followed inside of it only")
    data = _read_regular(str(path), relative, max_pixels)
    if data is None:
        raise ImageError(relative, "a link to a link that was changed meanwhile")
    return data


def _read_regular(path: str, relative: str, max_pixels: int, follow: bool = True) -> bytes | None:
    """Read a regular file of a likely size; ``None`` for a link that is not to be followed."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)  # without waiting for the other end, if it is a pipe
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ImageError(relative, "not a regular file")
            if status.st_size == 0:
                raise ImageError(relative, "empty file (0 bytes)")
            if status.st_size > (1 << 20) + _MAX_BYTES_PER_PIXEL * max_pixels:
                raise ImageError(relative, f"{status.st_size} bytes are too many for an image of {max_pixels} pixels")
            data = os.read(descriptor, status.st_size)
            while len(data) < status.st_size and (more := os.read(descriptor, status.st_size - len(data))):
                data += more
            return data
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        raise ImageError(relative, "missing, or a link to nothing") from error
    except OSError as error:
        if error.errno == errno.ELOOP and not follow:
            return None
        raise ImageError(relative, f"cannot be read: {error.strerror or error}") from error


def _decode(relative: str, data: bytes, max_pixels: int, finish: Callable[[Image.Image], T], silence: bool = True) -> T:
    """Open bytes, check the header, and let ``finish`` decode them completely."""
    try:
        with _open(data, silence) as image:
            if image.width * image.height > max_pixels:
                raise ImageError(relative, f"{image.width} × {image.height} pixels, more than {max_pixels} allowed")
            if max(image.size) > MAX_ASPECT * min(image.size):
                raise ImageError(
                    relative,
                    f"a strip of {image.width} × {image.height} pixels, longer than {MAX_ASPECT} times its width",
                )
            # Phones write a preview behind their JPEG (Pillow calls that MPO); the first frame is the photo.
            if getattr(image, "is_animated", False) and image.format != "MPO":
                raise ImageError(relative, f"animated or of several pages ({getattr(image, 'n_frames', '?')} frames)")
            return finish(image)
    except UnidentifiedImageError as error:
        suffix = PurePosixPath(relative).suffix.lower()
        unread = f"{suffix[1:].upper()} images are not read; convert them to JPEG or PNG"
        raise ImageError(relative, unread if suffix in UNREAD_SUFFIXES else NOT_AN_IMAGE) from error
    except Image.DecompressionBombError as error:
        raise ImageError(relative, f"too many pixels: {error}") from error
    except MemoryError as error:
        raise ImageError(relative, "too large for this machine's memory") from error
    except _BROKEN as error:
        raise ImageError(relative, f"damaged or truncated: {error or type(error).__name__}") from error


def _open(data: bytes, silence: bool) -> Image.Image:
    """Read the header only. Pillow's warnings about size and metadata are superseded by our own checks."""
    if not silence:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    with _open_lock, warnings.catch_warnings():  # the filters are global to the process
        warnings.simplefilter("ignore")
        return _open(data, silence=False)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any pixel format to 8-bit RGB: transparency onto white, 16-bit gray scaled, CMYK by its own rules.

    Raises:
        ValueError: If the pixels are floating-point numbers, whose scale is unknown.
    """
    if image.mode in _FLOAT_MODES:
        raise ValueError("floating-point pixels")
    if image.mode.startswith("I"):
        return image.convert("I").point(lambda value: value / 256).convert("L").convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")
