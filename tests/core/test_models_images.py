"""Image references stay inside their folder."""

import hashlib
import os

import pytest

from lewis_core.errors import ImageAccessError, ImageError
from lewis_core.models.images import ImageFolder
from lewis_core.records import Catalog, Concept, ImageRecord
from lewis_core.testing import write_image


@pytest.fixture
def root(tmp_path):
    write_image(tmp_path / "root" / "mug" / "my mug ü.jpg", 1)
    write_image(tmp_path / "secret.jpg", 2)
    return tmp_path / "root"


@pytest.mark.parametrize(
    "reference",
    [
        *("../secret.jpg", "/etc/passwd", "mug/../../secret.jpg", "..\\secret.jpg", "a\0b", "x/" * 3000),
        *("http://127.0.0.1/a.jpg", "file:///etc/passwd", "data:image/png;base64,AA", "s3://bucket/a.jpg"),
    ],
)
def test_references_outside_are_refused(root, reference):
    with pytest.raises(ImageAccessError):
        ImageFolder(root).resolve(reference)


def test_links_are_followed_inside_only(root):
    (root / "in.jpg").symlink_to(root / "mug" / "my mug ü.jpg")
    (root / "out.jpg").symlink_to(root.parent / "secret.jpg")
    (root / "around.jpg").symlink_to(root / "around.jpg")
    folder = ImageFolder(root)
    assert folder.load("in.jpg").mode == "RGB"
    with pytest.raises(ImageAccessError, match="outside"):
        folder.load("out.jpg")
    with pytest.raises(ImageError, match=r"around.jpg: no such image"):
        folder.load("around.jpg")


@pytest.mark.parametrize("reference", ["nothing.jpg", "mug", ""])
def test_missing_images_are_named(root, reference):
    with pytest.raises(ImageError):
        ImageFolder(root).digest(reference)


def test_digests_follow_the_content(root):
    folder = ImageFolder(root)
    write_image(root / "copy.jpg", 1)
    before = folder.digest("mug/my mug ü.jpg")
    assert folder.digest("copy.jpg") == before
    write_image(root / "copy.jpg", 3)
    os.utime(root / "copy.jpg", ns=(1, 1))
    assert folder.digest("copy.jpg") != before


def catalog_of(root):
    """A catalog that knows one photo by its digest."""
    sha256 = hashlib.sha256((root / "mug" / "my mug ü.jpg").read_bytes()).hexdigest()
    photo = ImageRecord(path="mug/my mug ü.jpg", sha256=sha256, width=32, height=32)
    return sha256, Catalog(concepts=(Concept(category="mug", category_word="mug", name="a", train=(photo,)),))


def test_photos_are_named_by_their_content(root):
    sha256, catalog = catalog_of(root)
    folder = ImageFolder(root, catalog=catalog)
    assert folder.digest(f"sha256:{sha256}") == sha256
    assert folder.load(f"sha256:{sha256}").size == (32, 32)
    with pytest.raises(ImageError, match="no image of the catalog has this digest"):
        folder.digest("sha256:" + "0" * 64)
    with pytest.raises(ImageError, match="no image of the catalog"):
        ImageFolder(root).digest(f"sha256:{sha256}")
    write_image(root / "mug" / "my mug ü.jpg", 9)
    with pytest.raises(ImageError, match="the file behind this digest was changed"):
        folder.digest(f"sha256:{sha256}")
    with pytest.raises(ImageError, match="changed while it was in use"):
        folder.load(f"sha256:{sha256}")


def test_a_photo_that_changes_between_digest_and_decoding_is_an_error_once(root):
    """Features are kept under the digest: other pixels must never be kept under it."""
    folder = ImageFolder(root)
    before = folder.digest("mug/my mug ü.jpg")
    write_image(root / "mug" / "my mug ü.jpg", 9)
    with pytest.raises(ImageError, match="changed while it was in use"):
        folder.load("mug/my mug ü.jpg")
    assert folder.digest("mug/my mug ü.jpg") != before
    folder.load("mug/my mug ü.jpg")


def test_a_list_of_folders_is_allowed(root):
    other = root.parent / "other"
    write_image(other / "b.jpg", 3)
    (root / "across.jpg").symlink_to(other / "b.jpg")
    (other / "out.jpg").symlink_to(root.parent / "secret.jpg")
    with pytest.raises(ImageError):
        ImageFolder(root).resolve("b.jpg")
    with pytest.raises(ImageAccessError):
        ImageFolder(root).resolve("across.jpg")
    folder = ImageFolder(root, [other])
    assert folder.resolve("b.jpg") == folder.resolve("across.jpg") == (other / "b.jpg").resolve()
    with pytest.raises(ImageAccessError, match="outside"):
        folder.resolve("out.jpg")


def test_large_photos_are_refused_before_they_are_decoded(root):
    with pytest.raises(ImageError, match="32 × 32 pixels, more than 1000"):
        ImageFolder(root, max_pixels=1000).load("mug/my mug ü.jpg")


def test_aliases_of_a_photo_take_no_memory(root):
    folder = ImageFolder(root)
    names = ["mug/my mug ü.jpg", *("mug/" + "./" * n + "my mug ü.jpg" for n in range(50))]
    assert len({folder.digest(name) for name in names}) == 1
    assert len(folder._digests) == 1
