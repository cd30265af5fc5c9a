"""A catalog at a glance: numbers by hand, and where each photo is on the sheet."""

import hashlib
from pathlib import Path

import pytest
from PIL import Image

from lewis_core.data import contact_sheet
from lewis_core.data.contact_sheet import PER_ROW, TILE, draw_contact_sheet
from lewis_core.data.images import load_thumbnail
from lewis_core.data.overview import MAX_ROWS, choose_photos, describe_catalog
from lewis_core.errors import ImageError
from lewis_core.records import Catalog, Concept, ImageRecord

STEP = TILE + 6
FIRST = (6, 6 + 18)
"""Corner of the first photo: a margin, and a line of text."""


def paint(root: Path, path: str, color: tuple[int, int, int], size: tuple[int, int] = (200, 200)) -> ImageRecord:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(root / path)
    digest = hashlib.sha256((root / path).read_bytes()).hexdigest()
    return ImageRecord(path=path, sha256=digest, width=size[0], height=size[1])


RED, GREEN, BLUE, GRAY = (200, 0, 0), (0, 200, 0), (0, 0, 200), (90, 90, 90)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """Two bags (red and green first) and a tall blue mug; a gray negative."""
    first = Concept(
        category="bag",
        category_word="bag",
        name="a",
        train=(paint(tmp_path, "a/1.png", RED), paint(tmp_path, "a/2.png", BLUE)),
        test=(paint(tmp_path, "a/3.png", RED, (100, 300)),),
    )
    second = Concept(category="bag", category_word="sack", name="b", train=(paint(tmp_path, "b/1.png", GREEN),))
    mug = Concept(category="mug", category_word="mug", name="c", test=(paint(tmp_path, "c/1.png", BLUE, (100, 400)),))
    return Catalog(concepts=(first, second, mug), negatives=(paint(tmp_path, "laion/1.png", GRAY),))


def test_statistics_by_hand(catalog: Catalog) -> None:
    assert describe_catalog(catalog) == {
        "categories": {
            "bag": {
                "concepts": 2,
                "train_images": 3,
                "test_images": 1,
                "negative_images": 0,
                "words": ["bag", "sack"],
            },
            "mug": {"concepts": 1, "train_images": 0, "test_images": 1, "negative_images": 0, "words": ["mug"]},
        },
        "train_images_per_concept": {"min": 0, "median": 1, "max": 2},
        "test_images_per_concept": {"min": 0, "median": 1, "max": 1},
        "different_pictures": 5,
        "width": {"min": 100, "median": 200, "max": 200},
        "height": {"min": 200, "median": 200, "max": 400},
        "portrait_frac": 0.4,
    }


def test_every_photo_is_in_its_place(catalog: Catalog, tmp_path: Path) -> None:
    sheet = draw_contact_sheet(choose_photos(catalog), tmp_path, num_workers=2)
    middle = [(FIRST[0] + TILE // 2 + column * STEP, FIRST[1] + TILE // 2) for column in range(5)]
    assert [sheet.getpixel(place) for place in middle] == [RED, GREEN, BLUE, RED, (255, 255, 255)]
    row = 18 + STEP
    assert [sheet.getpixel((middle[0][0], middle[0][1] + row * index)) for index in (1, 2)] == [BLUE, GRAY]
    assert sheet.getpixel((FIRST[0] + 2, middle[0][1] + row)) == (255, 255, 255)  # tall: white beside it
    assert sheet.size == (6 + PER_ROW * STEP, 3 * row + 6)


def test_the_sheet_stays_small(tmp_path: Path) -> None:
    photo = paint(tmp_path, "a.png", RED)
    concepts = tuple(
        Concept(category=f"c{category:02d}", category_word="x", name=f"{name:02d}", train=(photo,))
        for category in range(MAX_ROWS + 5)
        for name in range(PER_ROW + 3)
    )
    sheet = draw_contact_sheet(choose_photos(Catalog(concepts=concepts)), tmp_path)
    assert sheet.height == MAX_ROWS * (18 + STEP) + 18 + 6


def test_a_changed_photo_is_refused(catalog: Catalog, tmp_path: Path) -> None:
    paint(tmp_path, "b/1.png", BLUE)
    with pytest.raises(ImageError, match="changed since the catalog was built"):
        draw_contact_sheet(choose_photos(catalog), tmp_path)


def test_a_thumbnail_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (800, 400), RED)
    image.paste(BLUE, (0, 0, 400, 400))  # the left half will be the upper half
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    digest = hashlib.sha256((tmp_path / "a.jpg").read_bytes()).hexdigest()
    small = load_thumbnail(tmp_path, ImageRecord(path="a.jpg", sha256=digest, width=400, height=800), 100)
    assert small.size == (50, 100)
    upper, lower = small.getpixel((25, 20)), small.getpixel((25, 80))
    assert isinstance(upper, tuple) and isinstance(lower, tuple)
    assert min(upper[2], lower[0]) > 190
    assert max(upper[0], lower[2]) < 10


def test_labels_have_letters_of_many_languages() -> None:
    font = contact_sheet._load_font()
    drawn = {letter: bytes(font.getmask(letter)) for letter in "àéüñЖяΩ"}
    assert len(set(drawn.values())) == len(drawn)  # a missing letter is always the same box
