"""One image: what is accepted, what is set aside and why, and which pixels come out."""

import hashlib
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lewis_core.data.images import load_rgb, read_image_bytes, to_rgb
from lewis_core.errors import ImageError
from lewis_core.records import ImageRecord
from lewis_core.testing import inspect_image, write_image


def solid(mode: str, color: object, size: tuple[int, int] = (3, 2)) -> Image.Image:
    return Image.new(mode, size, color)  # type: ignore[arg-type]


def test_a_whole_image_is_described(tmp_path: Path) -> None:
    solid("RGB", (10, 20, 30)).save(tmp_path / "a.png")
    record = inspect_image(tmp_path, "a.png")
    digest = hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    assert record == ImageRecord(path="a.png", sha256=digest, width=3, height=2)


def test_orientation_is_applied(tmp_path: Path) -> None:
    image = solid("RGB", (0, 0, 0))
    image.putpixel((0, 0), (255, 255, 255))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90° clockwise
    image.save(tmp_path / "a.png", exif=exif)
    record = inspect_image(tmp_path, "a.png")
    assert (record.width, record.height) == (2, 3)
    assert load_rgb(tmp_path, record).getpixel((1, 0)) == (255, 255, 255)  # top left went to top right


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        pytest.param(solid("L", 77), (77, 77, 77), id="gray"),
        pytest.param(solid("1", 1), (255, 255, 255), id="bilevel"),
        pytest.param(solid("CMYK", (0, 255, 255, 0)), (255, 0, 0), id="cmyk"),
        pytest.param(solid("RGBA", (255, 0, 0, 255)), (255, 0, 0), id="opaque"),
        pytest.param(solid("RGBA", (255, 0, 0, 0)), (255, 255, 255), id="transparent-is-white"),
        pytest.param(solid("RGBA", (0, 0, 0, 51)), (204, 204, 204), id="alpha-51-of-255-is-a-fifth"),
        pytest.param(solid("LA", (0, 0)), (255, 255, 255), id="gray-alpha"),
        pytest.param(solid("I;16", 0x8040), (0x80, 0x80, 0x80), id="16-bit-keeps-the-high-byte"),
        pytest.param(solid("I", 65535), (255, 255, 255), id="32-bit-gray"),
        pytest.param(solid("P", 0), (0, 0, 0), id="palette"),
    ],
)
def test_every_format_becomes_rgb(image: Image.Image, expected: tuple[int, int, int]) -> None:
    rgb = to_rgb(image)
    assert rgb.mode == "RGB"
    assert rgb.getpixel((0, 0)) == expected


def test_16_bit_files_keep_their_contrast(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 0x4000, 0xFFFF]], dtype=np.uint16)).save(tmp_path / "a.png")
    inspect_image(tmp_path, "a.png")
    assert np.asarray(load_rgb(tmp_path, "a.png"))[0, :, 0].tolist() == [0, 0x40, 0xFF]


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    solid("RGB", (1, 2, 3)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").rename(tmp_path / "a.data")
    assert load_rgb(tmp_path, inspect_image(tmp_path, "a.data")).getpixel((0, 0)) == (1, 2, 3)


def test_a_phones_jpeg_with_a_preview_is_its_photo(tmp_path: Path) -> None:
    red, blue = solid("RGB", (254, 0, 0), (16, 16)), solid("RGB", (0, 0, 254), (8, 8))
    red.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[blue])
    record = inspect_image(tmp_path, "a.jpg")
    assert (record.width, record.height) == (16, 16)


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises a size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def write_empty(path: Path) -> None:
    path.write_bytes(b"")


def write_text(path: Path) -> None:
    path.write_text("not a picture")


def write_truncated(path: Path) -> None:
    write_image(path, seed=1, size=64)
    path.write_bytes(path.read_bytes()[:-200])


def write_damaged_png(path: Path) -> None:
    solid("RGB", (9, 9, 9), (64, 64)).save(path, format="PNG")
    data = bytearray(path.read_bytes())
    data[60:70] = b"\0" * 10
    path.write_bytes(data)


def write_giant(path: Path) -> None:
    path.write_bytes(png_header(15_000, 10_000))


def write_bomb(path: Path) -> None:
    path.write_bytes(png_header(60_000, 60_000))


def write_gif(path: Path) -> None:
    frames = [solid("RGB", (color, 0, 0)) for color in (1, 200)]
    frames[0].save(path, format="GIF", save_all=True, append_images=frames[1:])


def write_animated_webp(path: Path) -> None:
    frames = [solid("RGB", (color, 0, 0), (16, 16)) for color in (1, 200)]
    frames[0].save(path, format="WEBP", save_all=True, append_images=frames[1:])


def write_pages(path: Path) -> None:
    pages = [solid("L", color) for color in (1, 2)]
    pages[0].save(path, format="TIFF", save_all=True, append_images=pages[1:])


def write_float(path: Path) -> None:
    solid("F", 0.5).save(path, format="TIFF")


def make_folder(path: Path) -> None:
    path.mkdir()


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def link_to_nothing(path: Path) -> None:
    path.symlink_to(path.parent / "nothing")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def link_out(path: Path) -> None:
    outside = path.parent.parent / "outside.png"
    solid("RGB", (1, 1, 1)).save(outside)
    path.symlink_to(outside)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (write_empty, r"^empty file \(0 bytes\)$"),
        (write_text, "^not an image$"),
        (write_truncated, "^damaged or truncated: .*truncated"),
        (write_damaged_png, "^damaged or truncated"),
        (write_giant, "^15000 × 10000 pixels, more than 100000000 allowed$"),
        (write_bomb, "^too many pixels: "),
        (write_gif, r"^animated or of several pages \(2 frames\)$"),
        (write_animated_webp, "^animated"),
        (write_pages, "^animated or of several pages"),
        (write_float, "floating-point"),
        (make_folder, "^not a regular file$"),
        (make_pipe, "^not a regular file$"),
        (link_to_nothing, "^missing, or a link to nothing$"),
        (link_to_itself, "^a loop of links$"),
        (link_out, "^a link out of the data root"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_reason(tmp_path: Path, write, reason: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    write(root / "a.jpg")
    with pytest.raises(ImageError, match=r"^a\.jpg: ") as caught:
        inspect_image(root, "a.jpg")
    assert caught.value.path == "a.jpg"
    assert re.search(reason, caught.value.reason), caught.value.reason


def test_images_of_other_kinds_are_told_apart_from_other_files(tmp_path: Path) -> None:
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 40)
    with pytest.raises(ImageError, match="HEIC images are not read; convert them to JPEG or PNG"):
        inspect_image(tmp_path, "IMG_1.HEIC")


def test_a_link_inside_the_root_is_followed(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg", seed=1)
    (tmp_path / "b.jpg").symlink_to(tmp_path / "a.jpg")
    assert inspect_image(tmp_path, "b.jpg").sha256 == inspect_image(tmp_path, "a.jpg").sha256


def test_paths_out_of_the_root_are_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg", seed=1)
    (tmp_path / "root").mkdir()
    with pytest.raises(ImageError, match="out of the data root"):
        load_rgb(tmp_path / "root", "../a.jpg")


def test_the_limit_of_pixels_is_exact(tmp_path: Path) -> None:
    solid("RGB", 0, (10, 10)).save(tmp_path / "a.png")
    assert inspect_image(tmp_path, "a.png", max_pixels=100).width == 10
    with pytest.raises(ImageError, match="10 × 10 pixels, more than 99 allowed"):
        inspect_image(tmp_path, "a.png", max_pixels=99)


def test_a_file_that_changed_since_it_was_recorded_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg", seed=1)
    record = inspect_image(tmp_path, "a.jpg")
    assert read_image_bytes(tmp_path, record) == (tmp_path / "a.jpg").read_bytes()
    write_image(tmp_path / "a.jpg", seed=2)
    with pytest.raises(ImageError, match="changed since the catalog was built"):
        load_rgb(tmp_path, record)
