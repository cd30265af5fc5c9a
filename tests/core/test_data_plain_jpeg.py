"""Plain JPEG files are decoded without Pillow's reader of headers: nothing about the outcome may tell."""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lewis_core.data import images
from lewis_core.data.images import Sampled, sample_image
from lewis_core.data.plain_jpeg import decode_plain, read_plain_size
from lewis_core.errors import ImageError
from lewis_core.seeding import stable_rng

PLAIN = [
    pytest.param((96, 64), {}, id="4:2:0"),
    pytest.param((33, 41), {"subsampling": 0}, id="4:4:4"),
    pytest.param((120, 113), {"subsampling": 1, "quality": 60}, id="4:2:2"),
    pytest.param((112, 112), {"progressive": True}, id="progressive"),
    pytest.param((300, 290), {"optimize": True, "comment": b"by hand"}, id="an-eighth-with-comment"),
    pytest.param((150, 150), {"restart_marker_rows": 1}, id="restarts"),
    pytest.param((1, 7), {}, id="tiny"),
]


def encode(size: tuple[int, int], mode: str = "RGB", **options: object) -> bytes:
    pixels = stable_rng(size[0], "plain").integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode)
    image.save(buffer, "JPEG", **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def examine(folder: Path, data: bytes, max_pixels: int = 10**6) -> Sampled | str:
    (folder / "a.jpg").write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as where many files are opened
        try:
            return sample_image(folder, "a.jpg", max_pixels)
        except ImageError as error:
            return error.reason


def examine_by_pillow(
    monkeypatch: pytest.MonkeyPatch, folder: Path, data: bytes, max_pixels: int = 10**6
) -> Sampled | str:
    with monkeypatch.context() as patch:
        patch.setattr(images, "read_plain_size", lambda data: None)
        return examine(folder, data, max_pixels)


@pytest.mark.parametrize(("size", "options"), PLAIN)
def test_a_plain_file_gives_pillows_pixels(size: tuple[int, int], options: dict[str, object]) -> None:
    data = encode(size, **options)
    assert read_plain_size(data) == size
    found, expected = decode_plain(data, size, (36, 32)), Image.open(io.BytesIO(data))
    expected.draft(None, (36, 32))
    assert found is not None
    assert (found.mode, found.size, found.tobytes()) == (expected.mode, expected.size, expected.tobytes())


@pytest.mark.parametrize(("size", "options"), PLAIN)
def test_the_outcome_is_pillows_whatever_happened_to_a_file(
    size: tuple[int, int], options: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off, with changed, missing, added and repeated bytes, mostly in the header; reasons are the same as well."""
    whole, rng = encode(size, **options), stable_rng(size[0], "damage")
    header = whole.index(b"\xff\xda") + 14
    usable = 0
    for _ in range(150):
        data = bytearray(whole)
        place = int(rng.integers(header if rng.random() < 0.6 else len(data)))
        kind = rng.integers(5)
        if kind == 0:
            data[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[place] = int(rng.choice([0, 0xFF, 0xC0, 0xC2, 0xC4, 0xDA, 0xDB, 0xE0]))
        elif kind == 2:
            del data[place : place + int(rng.integers(1, 9))]
        elif kind == 3:
            data[place:place] = data[: int(rng.integers(1, header))]
        else:
            data = data[: max(1, place)]
        found = examine(tmp_path, bytes(data))
        assert found == examine_by_pillow(monkeypatch, tmp_path, bytes(data)), bytes(data).hex()
        usable += isinstance(found, Sampled)
    assert 0 < usable < 150


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encode((40, 40), "L"), id="gray"),
        pytest.param(encode((40, 40), "CMYK"), id="cmyk"),
        pytest.param(encode((40, 40), exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"), id="exif"),
        pytest.param(b"\xff\xd8\xff\xe0\0\7JFIF\0" + encode((40, 40))[20:], id="short-jfif"),
        pytest.param(encode((900, 900), quality=100, subsampling=0) + bytes(1 << 16), id="large"),
        pytest.param(b"\x89PNG\r\n\x1a\n", id="png"),
        pytest.param(b"", id="empty"),
    ],
)
def test_what_is_not_plain_is_left_to_pillow(data: bytes) -> None:
    """Pillow has more to say about these: how EXIF turns them, their colours, or that they cannot be used."""
    assert read_plain_size(data) is None


@pytest.mark.parametrize(("size", "max_pixels"), [((64, 64), 4095), ((3, 900), 10**6)])
def test_limits_hold_for_plain_files(
    size: tuple[int, int], max_pixels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encode(size)
    assert read_plain_size(data) == size
    found = examine(tmp_path, data, max_pixels)
    assert isinstance(found, str)
    assert found == examine_by_pillow(monkeypatch, tmp_path, data, max_pixels)


@pytest.mark.parametrize("size", [(0, 8), (8, 0), (5000, 5000)])
def test_sizes_that_cannot_be_are_not_decoded(size: tuple[int, int]) -> None:
    assert decode_plain(encode((8, 8)), size, (36, 32)) is None
