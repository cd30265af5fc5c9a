"""Two photos as one picture: what is where, what is refused, and what recognition asks with it."""

from pathlib import Path

import pytest
from PIL import Image

from lewis_core.config.evaluation import RecognitionConfig
from lewis_core.errors import ImageAccessError, ImageError
from lewis_core.evaluation import recognition
from lewis_core.evaluation.io import build_subjects
from lewis_core.listener.schemas import Question
from lewis_core.models.images import ImageFolder
from lewis_core.models.pairs import PairedImages, pair_reference, side_by_side
from lewis_core.prompts import prompt_set
from lewis_core.testing import FakeModel, make_catalog, make_database, write_image

CATALOG = make_catalog({"mug": 3})


def test_photos_stand_side_by_side_undistorted() -> None:
    left, right = Image.new("RGB", (200, 100), "red"), Image.new("RGB", (50, 200), "blue")
    picture = side_by_side(left, right)
    assert picture.size == (200 + 3 + 25, 100)  # the tall one becomes 25 × 100; a gap of 3 % of the height
    assert picture.getpixel((100, 50)) == (255, 0, 0)
    assert picture.getpixel((201, 50)) == (255, 255, 255)
    assert picture.getpixel((215, 50)) == (0, 0, 255)


def test_a_pair_is_named_by_both_and_their_order(tmp_path: Path) -> None:
    for seed, name in enumerate(("a.jpg", "b.jpg")):
        write_image(tmp_path / name, seed, 16)
    images = PairedImages(ImageFolder(tmp_path))
    one, other = pair_reference("a.jpg", "b.jpg"), pair_reference("b.jpg", "a.jpg")
    assert images.load(one).size == (33, 16)
    assert images.load("a.jpg").size == (16, 16)
    assert len({images.digest(name) for name in (one, other, "a.jpg", "b.jpg")}) == 4
    assert images.digest(one) == PairedImages(ImageFolder(tmp_path)).digest(one)
    assert images.digest("a.jpg") == ImageFolder(tmp_path).digest("a.jpg")
    (tmp_path / "b.jpg").unlink()
    for ask in (images.load, images.digest):
        with pytest.raises(ImageError, match=r"b\.jpg: no such image"):
            ask(one)


@pytest.mark.parametrize(
    "reference", ["pair:", "pair:[]", 'pair:["a"]', 'pair:["a", 1]', "pair:{", 'pair:["a","b","c"]']
)
def test_what_is_no_pair_is_refused(tmp_path: Path, reference: str) -> None:
    with pytest.raises(ImageError, match="JSON list of two"):
        PairedImages(ImageFolder(tmp_path)).load(reference)


def test_a_pair_leads_nowhere_else(tmp_path: Path) -> None:
    write_image(tmp_path / "in/a.jpg", 1)
    write_image(tmp_path / "secret.jpg", 2)
    images = PairedImages(ImageFolder(tmp_path / "in"))
    for outside in ("../secret.jpg", str(tmp_path / "secret.jpg"), "http://a/b.jpg"):
        with pytest.raises(ImageAccessError):
            images.load(pair_reference("a.jpg", outside))
        with pytest.raises(ImageAccessError):
            images.digest(pair_reference(outside, "a.jpg"))


def test_recognition_shows_the_reference_photo_beside_the_photo() -> None:
    subjects = build_subjects(make_database(CATALOG, {c.id: f"It is {c.id[-2:]}." for c in CATALOG.concepts}), CATALOG)
    seen: list[tuple[str | None, str]] = []

    def looks(image: str | None, question: Question) -> int:
        seen.append((image, question.prompt))
        left, right = image[6:-1].replace('"', "").split(", ") if image and image.startswith("pair:") else ("", "/x/")
        return 0 if left.split("/")[-2:-1] == right.split("/")[-2:-1] else 1

    config = RecognitionConfig(controls=("image-only", "image-and-text"))
    found = recognition.recognise(subjects, FakeModel(answers=looks), prompt_set("concise"), config)
    first = subjects[0]
    pair = pair_reference(first.entry.reference.path, first.photos[0].path)
    words = [prompt for image, prompt in seen if image == pair]
    assert len(words) == 2 and sum("It is 00." in prompt for prompt in words) == 1
    assert all("secret" not in prompt and ".jpg" not in prompt for prompt in words)
    for mode in ("image_only", "image_and_text"):
        arm = [p for p in found if p.tags["mode"] == mode]
        assert len(arm) == 6 * 3 and all(p.is_correct for p in arm)
