"""The same picture in two places, byte by byte or by its look, and what is done about it."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from lewis_core.config.base import Runtime
from lewis_core.config.data import CatalogConfig
from lewis_core.data.catalog import build_catalog
from lewis_core.data.duplicates import Duplicate, find_near_duplicates, find_places
from lewis_core.data.images import sample_cells, sample_image
from lewis_core.data.layout import SetAside
from lewis_core.data.looks import NEAR_BITS, NEAR_COLOUR, Look, examine, find_similar, read_looks
from lewis_core.errors import QuarantineError
from lewis_core.records import Catalog, JsonObject, load_jsonl, load_record
from lewis_core.reporting import NullReporter
from lewis_core.seeding import stable_rng
from lewis_core.testing import write_image, write_photo_tree


def build(root: Path, config: CatalogConfig = CatalogConfig()) -> tuple[JsonObject, Path]:
    output = root.with_name(f"{root.name}-out{len(list(root.parent.iterdir()))}")
    output.mkdir()
    return build_catalog("f", output, config, root, Runtime(num_workers=1), NullReporter()), output


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two categories of two concepts with two photos in each of train and test: 16 photos."""
    write_photo_tree(tmp_path / "root", concepts=2, photos=2)
    return tmp_path / "root"


def copy(root: Path, source: str, target: str) -> None:
    (root / target).parent.mkdir(parents=True, exist_ok=True)
    (root / target).write_bytes((root / source).read_bytes())


def test_duplicates_are_listed(root: Path) -> None:
    copy(root, "train/bag/b00/0.jpg", "train/mug/m01/copy.jpg")
    copy(root, "train/mug/m00/0.jpg", "test/mug/m00/0.jpg")
    copy(root, "train/bag/b01/0.jpg", "train/bag/b01/1.jpg")  # same place: no harm
    copy(root, "test/bag/b01/0.jpg", "train/bag/b01/laion/0.jpg")
    copy(root, "test/bag/b01/1.jpg", "train/mug/m00/laion/0.jpg")  # a negative of another concept: no harm
    copy(root, "train/mug/m01/1.jpg", "laion/7.jpg")
    summary, output = build(root)
    found = {duplicate.paths: duplicate for duplicate in load_jsonl(output / "duplicates.jsonl", Duplicate)}
    flags = {paths: (d.across_concepts, d.across_splits, d.among_negatives) for paths, d in found.items()}
    assert flags == {
        ("train/bag/b00/0.jpg", "train/mug/m01/copy.jpg"): (True, False, False),
        ("test/mug/m00/0.jpg", "train/mug/m00/0.jpg"): (False, True, False),
        ("test/bag/b01/0.jpg", "train/bag/b01/laion/0.jpg"): (False, False, True),
        ("laion/7.jpg", "train/mug/m01/1.jpg"): (False, False, True),
    }
    counts = {key: value for key, value in summary.items() if key.startswith("duplicates")}
    assert counts == {
        "duplicates_across_concepts": 1,
        "duplicates_across_splits": 1,
        "duplicates_among_negatives": 2,
    }


def test_shared_pictures_can_be_taken_from_everybody(root: Path) -> None:
    copy(root, "train/bag/b00/0.jpg", "train/mug/m01/copy.jpg")
    copy(root, "train/bag/b00/1.jpg", "test/bag/b00/1.jpg")  # the same concept: stays
    summary, output = build(root, CatalogConfig(shared_images="set-aside", max_quarantine_frac=0.2))
    asides = load_jsonl(output / "quarantine.jsonl", SetAside)
    assert [(entry.path, entry.reason) for entry in asides] == [
        ("train/bag/b00/0.jpg", "the same picture as train/mug/m01/copy.jpg, of another concept"),
        ("train/mug/m01/copy.jpg", "the same picture as train/bag/b00/0.jpg, of another concept"),
    ]
    assert (summary["quarantined"], summary["duplicates_across_concepts"]) == (2, 0)
    catalog = load_record(output / "catalog.json", Catalog)
    assert [image.path for image in catalog.concept("bag/b00").train] == ["train/bag/b00/1.jpg"]
    with pytest.raises(QuarantineError, match="2 of 17 images"):
        build(root, CatalogConfig(shared_images="set-aside", max_quarantine_frac=0.1))


def scene(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """A smooth picture of many colours."""
    pixels = stable_rng(seed, "scene").integers(0, 256, (8, 9, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def recode(image: Image.Image, **options: object) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, **options)  # type: ignore[arg-type]
    return Image.open(io.BytesIO(buffer.getvalue()))


def look_at(image: Image.Image) -> Look:
    return read_looks([sample_cells(image)])[0]


def is_near(first: Image.Image, second: Image.Image) -> bool:
    return len(find_similar(sorted({look_at(first), look_at(second)}))) == 1 or look_at(first) == look_at(second)


@pytest.mark.parametrize("seed", range(5))
def test_copies_look_alike_and_other_pictures_do_not(seed: int) -> None:
    image = scene(seed)
    assert is_near(image, recode(image, format="JPEG", quality=60))
    assert is_near(image, recode(image, format="WEBP", quality=70))
    assert is_near(image, image.resize((160, 120), Image.Resampling.LANCZOS))
    assert not is_near(image, scene(seed + 100))
    assert not is_near(image, ImageOps.mirror(image))


def test_another_colour_is_another_look() -> None:
    gray = scene(1).convert("L")
    red, blue = (ImageOps.colorize(gray, "black", colour) for colour in ((255, 76, 76), (120, 120, 255)))
    assert not is_near(red, blue)


def test_a_look_is_that_of_the_upright_image(tmp_path: Path) -> None:
    image, exif = scene(3), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "upright.jpg", quality=95)
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", quality=95, exif=exif)
    upright, turned = examine([sample_image(tmp_path, name) for name in ("upright.jpg", "turned.jpg")])
    assert (turned.width, turned.height) == (upright.width, upright.height) == (320, 240)
    assert find_similar(sorted({upright.look, turned.look})).tolist() == [[0, 1]]


def test_the_hash_by_hand() -> None:
    """Brightness rises to the right in the upper half, and falls in the lower half."""
    rising = np.tile(np.arange(9, dtype=np.uint8) * 20, (4, 1))
    pixels = np.vstack([rising, rising[:, ::-1]])
    look = look_at(Image.fromarray(pixels))
    assert look.bits == 0xFFFFFFFF_00000000
    upper, lower = [0, 60, 120], [160, 100, 40]
    assert look.colours == bytes(value for value in (*upper, *upper, *lower, *lower) for _ in range(3))


HASHES = st.one_of(
    st.integers(0, 2**64 - 1), st.integers(0, 63).map(lambda place: 1 << place), st.sampled_from([0, 2**8 - 1])
)


@given(st.lists(st.builds(Look, HASHES, st.sampled_from([bytes(36), bytes([4] * 36), bytes([5] * 36)])), max_size=40))
def test_pairs_are_those_of_a_plain_search(found: list[Look]) -> None:
    looks = sorted(set(found))
    expected = [
        [i, j]
        for i, first in enumerate(looks)
        for j, second in enumerate(looks)
        if i < j
        and (first.bits ^ second.bits).bit_count() <= NEAR_BITS
        and abs(first.colours[0] - second.colours[0]) <= NEAR_COLOUR
    ]
    assert find_similar(looks).tolist() == expected if looks else expected == []


def test_pictures_that_look_like_a_common_third_are_one_group(root: Path) -> None:
    output = build(root)[1]
    catalog = load_record(output / "catalog.json", Catalog)
    images = [image for concept in catalog.concepts for image in (*concept.train, *concept.test)]
    colours = [bytes([10 * number] * 36) for number in range(len(images))]
    looks = {image.sha256: Look(0, colour) for image, colour in zip(images, colours, strict=True)}
    looks[images[0].sha256] = Look(0, bytes(36))
    looks[images[1].sha256] = Look(0x7F, bytes(36))
    looks[images[5].sha256] = Look(0x3FFF, bytes(36))  # seven bits from images[1], fourteen from images[0]
    [group] = find_near_duplicates(find_places(catalog), looks)
    assert group.paths == tuple(sorted(images[index].path for index in (0, 1, 5)))
    assert (group.across_concepts, group.across_splits) == (True, False)


def test_a_resized_copy_in_the_test_folder_is_found(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for seed, path in enumerate(("train/bag/a/1.jpg", "test/bag/a/2.jpg", "train/bag/b/3.jpg", "test/bag/b/4.jpg")):
        (root / path).parent.mkdir(parents=True)
        scene(seed).save(root / path, quality=92)
    scene(0).resize((200, 150)).save(root / "test/bag/a/small.png")
    summary, output = build(root)
    [found] = load_jsonl(output / "near_duplicates.jsonl", Duplicate)
    assert found.paths == ("test/bag/a/small.png", "train/bag/a/1.jpg")
    assert (found.across_concepts, found.across_splits) == (False, True)
    assert (summary["near_duplicates_across_splits"], summary["duplicates_across_splits"]) == (1, 0)


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_a_cut_off_jpeg_is_found_although_it_is_decoded_small(tmp_path: Path, share: float) -> None:
    write_image(tmp_path / "a.jpg", 1, size=512)
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: int(share * len(data))])
    with pytest.raises(Exception, match="damaged or truncated"):
        sample_image(tmp_path, "a.jpg")
