"""Image references stay inside their folder."""

import os

import pytest

from lewis_core.errors import ImageAccessError, ImageError
from lewis_core.models.images import ImageFolder
from lewis_core.testing import write_image


@pytest.fixture
def root(tmp_path):
    write_image(tmp_path / "root" / "mug" / "my mug ü.jpg", 1)
    write_image(tmp_path / "secret.jpg", 2)
    return tmp_path / "root"


@pytest.mark.parametrize(
    "reference", ["../secret.jpg", "/etc/passwd", "mug/../../secret.jpg", "..\\secret.jpg", "a\0b"]
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
