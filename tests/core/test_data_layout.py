"""Where files lie says what they are; what does not fit is named."""

import os
from pathlib import Path

import pytest

from lewis_core.data.layout import Listing, SetAside, list_data_root, scan_tree
from lewis_core.data.vocabulary import category_word
from lewis_core.errors import CatalogError


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")


def places(layout: Listing) -> list[tuple[str, str, str, str]]:
    return [(file.path, file.split, file.category, file.concept) for file in layout.files]


def test_split_layout(tmp_path: Path) -> None:
    touch(
        tmp_path, "train/bag/a/1.jpg", "train/bag/a/laion/7.jpg", "test/bag/a/2.jpg", "test/mug/a/3.png", "readme.txt"
    )
    layout = list_data_root(tmp_path)
    assert layout.is_split
    assert places(layout) == [
        ("test/bag/a/2.jpg", "test", "bag", "a"),
        ("test/mug/a/3.png", "test", "mug", "a"),
        ("train/bag/a/1.jpg", "train", "bag", "a"),
        ("train/bag/a/laion/7.jpg", "negative", "bag", "a"),
    ]
    assert layout.set_aside == []


def test_perva_spells_its_folders_with_an_underscore(tmp_path: Path) -> None:
    touch(tmp_path, "train_/bag/a/1.jpg", "test_/bag/a/2.jpg")
    assert [split for _, split, _, _ in places(list_data_root(tmp_path))] == ["test", "train"]


def test_unsplit_layout(tmp_path: Path) -> None:
    touch(tmp_path, "bag/a/1.jpg", "visual-qa.json")
    layout = list_data_root(tmp_path)
    assert not layout.is_split
    assert places(layout) == [("bag/a/1.jpg", "unsplit", "bag", "a")]


def test_names_may_hold_spaces_and_any_letters(tmp_path: Path) -> None:
    touch(tmp_path, "train/päck und säck/我的 包/ein bild (1).jpg")
    assert places(list_data_root(tmp_path)) == [
        ("train/päck und säck/我的 包/ein bild (1).jpg", "train", "päck und säck", "我的 包")
    ]


def test_hidden_files_are_ignored(tmp_path: Path) -> None:
    touch(tmp_path, ".DS_Store", "train/.x/a/1.jpg", "train/bag/.a/1.jpg", "train/bag/a/.1.jpg", "train/bag/a/1.jpg")
    layout = list_data_root(tmp_path)
    assert len(layout.files) == 1
    assert layout.set_aside == []


def test_a_name_that_cannot_be_passed_on_is_set_aside(tmp_path: Path) -> None:
    touch(tmp_path, "train/bag/a/1.jpg")
    (tmp_path / os.fsdecode(b"train/bag/a/\xff.jpg")).write_bytes(b"x")
    (tmp_path / "train/bag/back\\slash").mkdir()
    layout = list_data_root(tmp_path)
    reason = "its name is not valid UTF-8, or holds a backslash; rename it"
    assert layout.set_aside == [
        SetAside(path="train/bag/a/\\udcff.jpg", reason=reason),
        SetAside(path="train/bag/back\\slash", reason=reason),
    ]
    assert len(layout.files) == 1
    assert scan_tree(tmp_path)


def test_empty_folders_are_remembered(tmp_path: Path) -> None:
    touch(tmp_path, "train/bag/a/1.jpg")
    (tmp_path / "train/mug").mkdir()
    (tmp_path / "test/bag/b").mkdir(parents=True)
    layout = list_data_root(tmp_path)
    assert layout.categories == {"bag", "mug"}
    assert layout.concepts == {("bag", "a"), ("bag", "b")}


def test_what_is_not_read_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "train/notes.txt", "train/bag/notes.txt", "train/bag/a/1.jpg", "train/bag/a/more/2.jpg")
    touch(tmp_path, "val/bag/a/1.jpg", "cover.jpg", "facts.json")
    layout = list_data_root(tmp_path)
    assert [(entry.path, entry.reason) for entry in layout.others] == [
        ("cover.jpg", "not read: it is not in a train or test folder"),
        ("train/bag/notes.txt", "not an image, and not a concept folder"),
        ("train/notes.txt", "not an image, and not a category folder"),
        ("val", "not read: it is not in a train or test folder"),
    ]
    assert [(entry.path, entry.reason) for entry in layout.set_aside] == [
        (
            "train/bag/a/more",
            "a folder in a concept folder; only 'laion', 'negative_example', 'negatives' are read there",
        )
    ]


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    touch(tmp_path, "real/train/bag/a/1.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert places(list_data_root(tmp_path / "link")) == [("train/bag/a/1.jpg", "train", "bag", "a")]
    assert scan_tree(tmp_path / "link") == scan_tree(tmp_path / "real")


def test_linked_folders_are_named_and_not_entered(tmp_path: Path) -> None:
    root = tmp_path / "root"
    touch(root, "train/bag/a/1.jpg")
    touch(tmp_path, "outside/b/1.jpg")
    (root / "train/out").symlink_to(tmp_path / "outside")
    (root / "train/bag/loop").symlink_to(root / "train")
    (root / "train/bag/self").symlink_to(root / "train/bag/self")
    (root / "train/bag/copy").symlink_to(root / "train/bag/a")
    (root / "train/bag/a/up").symlink_to(root)
    layout = list_data_root(root)
    assert places(layout) == [("train/bag/a/1.jpg", "train", "bag", "a")]
    assert {entry.path: entry.reason for entry in layout.set_aside} == {
        "train/out": "a link out of the data root; not followed",
        "train/bag/loop": "a loop: links to a folder that it lies in; not followed",
        "train/bag/self": "a link to nothing, or a loop of links; not followed",
        "train/bag/copy": "a linked folder; not followed",
        "train/bag/a/up": "a loop: links to a folder that it lies in; not followed",
    }


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        pytest.param(("train/1.jpg",), "train/1.jpg: expected a category folder or a concept", id="no-folders"),
        pytest.param(("1.jpg",), "1.jpg: expected a category folder or a concept folder there", id="image-in-root"),
        pytest.param(("a/b/c/1.jpg",), "a/b/c/1.jpg: expected a category folder", id="too-deep"),
        pytest.param(
            ("Data/train/bag/a/1.jpg", "Data/test/bag/a/2.jpg"),
            "did you mean the data root to be Data in it",
            id="hint",
        ),
        pytest.param(
            ("Train/bag/a/1.jpg", "TEST/bag/a/2.jpg"), "; rename TEST to test and Train to train$", id="hint-case"
        ),
        pytest.param(
            ("train/bag/1.PNG", "train/bag/a/2.jpg"),
            r"train/bag/1.PNG and 0 more as <concept>/<image> \(catalog.layout = 'flat'\), train/bag/a/2.jpg and 0",
            id="two-depths",
        ),
        pytest.param(("train",), "train in the data root is a file; expected a folder of", id="file-for-split"),
        pytest.param(
            ("train/b/a/1.jpg", "train_/b/a/2.jpg"), "holds both train and train_, two names", id="both-spellings"
        ),
    ],
)
def test_an_image_where_a_folder_belongs_is_an_error(tmp_path: Path, paths: tuple[str, ...], message: str) -> None:
    touch(tmp_path, *paths)
    with pytest.raises(CatalogError, match=message):
        list_data_root(tmp_path)


def test_a_linked_split_folder_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/bag/a/1.jpg", "root/x.txt")
    (tmp_path / "root/train").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CatalogError, match="train in the data root is a link; expected a folder"):
        list_data_root(tmp_path / "root")


@pytest.mark.parametrize("function", [list_data_root, scan_tree])
def test_a_missing_root_is_named(tmp_path: Path, function) -> None:
    with pytest.raises(CatalogError, match=r"no data root at .*/photos; expected a folder"):
        function(tmp_path / "photos")
    touch(tmp_path, "photos")
    with pytest.raises(CatalogError, match=r"the data root .*/photos is a file"):
        function(tmp_path / "photos")


def test_the_fingerprint_changes_with_the_tree_and_with_nothing_else(tmp_path: Path) -> None:
    touch(tmp_path, "train/bag/a/1.jpg", "facts.json")
    os.utime(tmp_path / "train/bag/a/1.jpg", ns=(1, 1))
    seen = [scan_tree(tmp_path)]
    assert scan_tree(tmp_path) == seen[0]
    touch(tmp_path, ".hidden", "train/.cache/1.jpg")
    assert scan_tree(tmp_path) == seen[0]

    def expect_change() -> None:
        seen.append(scan_tree(tmp_path))
        assert len(set(seen)) == len(seen)

    os.utime(tmp_path / "train/bag/a/1.jpg", ns=(1, 2))
    expect_change()
    touch(tmp_path, "train/bag/a/2.jpg")
    expect_change()
    (tmp_path / "train/bag/a/2.jpg").rename(tmp_path / "train/bag/a/3.jpg")
    expect_change()
    (tmp_path / "train/bag/a/4.jpg").symlink_to("4.jpg")
    expect_change()
    (tmp_path / "train/bag/a/1.jpg").unlink()
    expect_change()


@pytest.mark.parametrize(
    ("category", "name", "word"),
    [
        ("veg", "a", "vegetable"),
        ("decoration", "a", "decoration object"),
        ("retail", "a", "retail object"),
        ("tro_bag", "a", "trolley bag"),
        ("all", "a", "object"),
        ("coffee_mug", "a", "coffee mug"),
        ("toy", "a", "soft toy"),
        ("toy", "b", "duck"),
    ],
)
def test_words_for_categories(category: str, name: str, word: str) -> None:
    assert category_word(category, name, {"toy": "soft toy", "toy/b": "duck"}) == word
