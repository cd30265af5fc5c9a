"""Decode the most common kind of small JPEG file without reading its header twice.

Pillow reads a JPEG file's header in Python, to find out what its decoder finds out again; with small photos that is a
quarter of all work. A file is *plain* if it holds nothing of which Pillow's reader makes more than its size: three
colours, baseline or progressive, no EXIF, no Adobe or preview segments, no padding. Plain files go to the same decoder
with the same arguments at once. Whatever is unusual or wrong is left to Pillow's reader, whose word is the last one.
"""

import struct

from PIL import Image

_MAX_BYTES = 1 << 16
"""Pillow hands the decoder so much at a time; larger files could meet it in another state."""
_MAX_PIXELS = 1 << 24
"""Far below what Pillow refuses as a decompression bomb."""
_START, _SCAN, _JFIF = b"\xff\xd8", 0xFFDA, 0xFFE0
_FRAMES = frozenset({0xFFC0, 0xFFC2})
"""Headers of baseline and progressive images."""
_TABLES = frozenset({0xFFC4, 0xFFDB, 0xFFDD, 0xFFFE})
"""Tables of codes and quantization, restart intervals, comments."""
_MIN_JFIF, _THREE_COLOURS = 16, (17, 8, 3)
"""Length of a whole JFIF segment; length, bits and colours of a frame's header."""
_read_segment = struct.Struct(">HH").unpack_from
_read_frame = struct.Struct(">BHHB").unpack_from


def read_plain_size(data: bytes) -> tuple[int, int] | None:
    """Width and height that a file states, in pixels; ``None`` if it is not a plain JPEG file."""
    if not data.startswith(_START) or len(data) > _MAX_BYTES:
        return None
    place, size = len(_START), None
    try:
        while True:
            marker, length = _read_segment(data, place)
            if marker == _SCAN:
                return size
            if marker in _FRAMES:
                bits, height, width, colours = _read_frame(data, place + 4)
                if (length, bits, colours) != _THREE_COLOURS:
                    return None
                size = width, height
            elif marker not in _TABLES and not (marker == _JFIF and length >= _MIN_JFIF):
                return None
            place += 2 + length
    except struct.error:
        return None


def decode_plain(data: bytes, size: tuple[int, int], smallest: tuple[int, int]) -> Image.Image | None:
    """Decode all of a plain JPEG file, making its pixels at a half, a quarter or an eighth of its size.

    Args:
        data: The file.
        size: What :func:`read_plain_size` returned.
        smallest: Width and height that the result must not fall below, if the photo does not.

    Returns:
        An RGB image, equal to that of Pillow's ``draft(None, smallest)`` and ``load()``; ``None`` if Pillow has to be
        asked what is wrong, or whether anything is.
    """
    width, height = size
    if not 0 < width * height <= _MAX_PIXELS:
        return None
    room = min(width // smallest[0], height // smallest[1])
    scale = next((scale for scale in (8, 4, 2) if room >= scale), 1)
    reduced = (-(-width // scale), -(-height // scale))
    try:
        return Image.frombytes("RGB", reduced, data, "jpeg", "RGB", "", scale, 0)
    except (ValueError, OSError, MemoryError, TypeError):  # TypeError: the decoder of another Pillow, called otherwise
        return None
