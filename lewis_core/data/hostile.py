"""Files that want to harm whoever opens them as images: made for tests and drills, with what has to become of each."""

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

SIDE = 40


class Hostile(NamedTuple):
    """One file."""

    name: str
    """Its path below the folder."""
    is_image: bool
    """Whether it is one whole image after all, only an unusual one."""
    write: Callable[[Path], object]
    """Makes it."""


def hostile_files() -> Iterator[Hostile]:
    """All of them, from bombs to plain damage."""
    yield from _bombs()
    yield from _damaged()
    yield from _disguised()
    yield from _places()
    yield from _unusual()


def write_hostile_files(folder: Path) -> list[Hostile]:
    """Write them into a folder."""
    files = list(hostile_files())
    for file in files:
        path = folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        file.write(path)
    return files


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _plain(mode: str = "RGB", side: int = SIDE) -> Image.Image:
    pixels = np.arange(side * side * 3, dtype=np.uint32).reshape(side, side, 3) * 37 % 251
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def _png(width: int, height: int, data: bytes, depth: int = 8, color: int = 0) -> bytes:
    """A PNG file whose header says what it likes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _bytes(name: str, content: bytes, is_image: bool = False) -> Hostile:
    return Hostile(name, is_image, lambda path: path.write_bytes(content))


def _bombs() -> Iterator[Hostile]:
    zeros = zlib.compress(b"\0" * 10_000_000, 9)
    yield _bytes("bombs/pixels.png", _png(50_000, 50_000, zeros, depth=1))
    yield _bytes("bombs/most-pixels.png", _png(0x7FFFFFFF, 0x7FFFFFFF, zeros))
    yield _bytes("bombs/strip.png", _png(100_000, 1, zlib.compress(b"\0" * 100_001)))
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 80_000_000, zip=True)
    yield _bytes("bombs/text.png", _encoded(_plain(), "PNG", pnginfo=text))
    jpeg = bytearray(_encoded(_plain(), "JPEG"))
    size = jpeg.index(b"\xff\xc0") + 5
    jpeg[size : size + 4] = struct.pack(">HH", 65_500, 65_500)
    yield _bytes("bombs/pixels.jpg", bytes(jpeg))
    frames = [_plain(side=8).point(lambda value, n=n: (value + n) % 256) for n in range(300)]
    yield _bytes("bombs/frames.gif", _encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    pages = _encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:40])
    yield _bytes("bombs/pages.tiff", pages)


def _damaged() -> Iterator[Hostile]:
    for kind, suffix in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("BMP", "bmp"), ("TIFF", "tiff")):
        whole = _encoded(_plain(side=64), kind)
        yield _bytes(f"damaged/half.{suffix}", whole[: len(whole) // 2])
        yield _bytes(f"damaged/header.{suffix}", whole[:20])
    png = _encoded(_plain(), "PNG")
    yield _bytes("damaged/checksum.png", png[:60] + bytes([png[60] ^ 1]) + png[61:])
    yield _bytes("damaged/no-data.png", _png(10, 10, b""))
    yield _bytes("damaged/too-little-data.png", _png(100, 100, zlib.compress(b"\0" * 50)))
    yield _bytes("damaged/no-size.png", _png(0, 0, zlib.compress(b"")))
    yield _bytes("damaged/unknown-depth.png", _png(8, 8, zlib.compress(b"\0" * 72), depth=7))
    yield _bytes("damaged/negative.bmp", _encoded(_plain(), "BMP")[:18] + struct.pack("<ii", -5, -5) + b"\0" * 64)
    yield _bytes("damaged/empty.jpg", b"")
    yield _bytes("damaged/noise.jpg", np.random.default_rng(0).bytes(5000))
    yield _bytes("damaged/markers.jpg", b"\xff\xd8" + b"\xff\xe1\xff\xff" * 200)


def _disguised() -> Iterator[Hostile]:
    yield _bytes("disguised/page.jpg", b"<html><script>alert(1)</script></html>")
    yield _bytes(
        "disguised/drawing.jpg", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    )
    yield _bytes(
        "disguised/postscript.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n"
    )
    yield _bytes("disguised/document.jpg", b"%PDF-1.4\n1 0 obj << >> endobj\n")
    yield _bytes("disguised/archive.png", b"PK\x03\x04" + b"\0" * 100)
    yield _bytes("disguised/program.png", b"\x7fELF" + b"\0" * 100)
    yield _bytes("disguised/pickle.png", b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.")
    yield _bytes("disguised/icon.jpg", _encoded(_plain(side=16), "ICO"))
    yield _bytes("disguised/fits.jpg", b"SIMPLE  =                    T" + b" " * 2850)


def _places() -> Iterator[Hostile]:
    yield Hostile("places/outside.jpg", False, lambda path: path.symlink_to("/etc/passwd"))
    yield Hostile("places/nothing.jpg", False, lambda path: path.symlink_to("nowhere.jpg"))
    yield Hostile("places/circle.jpg", False, lambda path: path.symlink_to("circle.jpg"))
    yield Hostile("places/endless.jpg", False, lambda path: path.symlink_to("/dev/zero"))
    yield Hostile("places/pipe.jpg", False, os.mkfifo)
    yield Hostile("places/folder.jpg", False, Path.mkdir)


def _unusual() -> Iterator[Hostile]:
    for mode, kind in (("1", "PNG"), ("L", "PNG"), ("P", "PNG"), ("LA", "PNG"), ("RGBA", "PNG"), ("CMYK", "JPEG")):
        yield _bytes(f"unusual/{mode}.{kind.lower()}", _encoded(_plain(mode), kind), is_image=True)
    deep = Image.fromarray(np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE))
    yield _bytes("unusual/sixteen-bits.png", _encoded(deep, "PNG"), is_image=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    yield _bytes("unusual/turned.jpg", _encoded(_plain(), "JPEG", exif=exif), is_image=True)
    yield _bytes("unusual/more-behind.png", _encoded(_plain(), "PNG") + b"<?php system('x') ?>", is_image=True)
    yield _bytes("unusual/ü \u202egpj.txt", _encoded(_plain(), "JPEG"), is_image=True)
    loop = bytearray(_encoded(_plain(), "TIFF"))
    [first] = struct.unpack("<I", loop[4:8])
    [count] = struct.unpack("<H", loop[first : first + 2])
    loop[first + 2 + 12 * count : first + 6 + 12 * count] = struct.pack("<I", first)
    yield _bytes("unusual/next-page-is-itself.tiff", bytes(loop), is_image=True)
