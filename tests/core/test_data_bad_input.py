"""What is wrong with a data root is named: the file, the line, the key, the reason, and what to do."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from lewis_core.config.base import Runtime
from lewis_core.config.data import CatalogConfig
from lewis_core.data.catalog import build_catalog
from lewis_core.data.inspection import inspect_files
from lewis_core.data.json_files import load_json_object
from lewis_core.data.layout import SetAside, list_data_root
from lewis_core.data.readers import Readers
from lewis_core.errors import CatalogError, QuarantineError
from lewis_core.records import JsonObject, VqaItem, load_jsonl
from lewis_core.reporting import NullReporter
from lewis_core.testing import write_image, write_photo_tree


def build(root: Path, config: CatalogConfig = CatalogConfig(), work_dir: Path | None = None) -> tuple[JsonObject, Path]:
    output = root.with_name(f"{root.name}-out")
    output.mkdir()
    return build_catalog("f", output, config, root, Runtime(num_workers=1), NullReporter(), work_dir), output


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two categories of two concepts with two photos in each of train and test."""
    write_photo_tree(tmp_path / "root", concepts=2, photos=2)
    return tmp_path / "root"


def test_thin_categories_and_concepts_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "root"
    for number, path in enumerate(("train/bag/a/1", "test/bag/a/2", "train/bag/b/3", "train/hat/c/4", "test/hat/c/5")):
        write_image(root / f"{path}.jpg", number)
    (root / "test/bag/b").mkdir()
    (root / "test/bag/b/copy.jpg").write_bytes((root / "train/bag/b/3.jpg").read_bytes())
    summary, _ = build(root)
    assert summary["concepts_with_one_image"] == ["bag/b"]  # two files, one picture
    assert summary["categories_with_one_concept"] == ["hat"]
    assert "1 concepts with a single picture, which cannot be the target of a game about itself: bag/b" in caplog.text
    assert "1 categories with a single concept, which has no look-alikes and is held out: hat" in caplog.text


def test_folders_that_are_not_read_are_named(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_image(root / "val/bag/b00/9.jpg", 9)
    write_image(root / "10.jpg", 10)
    _, output = build(root)
    assert "2 folders and images beside train and test, not read: val, 10.jpg" in caplog.text
    assert [entry.path for entry in load_jsonl(output / "quarantine.jsonl", SetAside)] == ["10.jpg", "val"]


def test_names_that_look_the_same_are_named(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, path in enumerate(("train/Bag/x", "train/mug/\u00fc", "test/mug/u\u0308", "train/hat/a", "test/hat/b")):
        write_image(root / path / "1.jpg", 20 + number)
    build(root)
    [line] = [record.getMessage() for record in caplog.records if "differ in case" in record.getMessage()]
    assert line == (
        "2 names that differ in case or spelling of letters only, taken for different things: "
        r"'Bag' and 'bag', 'mug/u\u0308' and 'mug/\xfc'"
    )


LIST = """
import os, sys
from pathlib import Path
from lewis_core.data.layout import list_data_root
from lewis_core.errors import CatalogError
if os.getuid() == 0:  # root may read everything
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
try:
    list_data_root(Path(sys.argv[1]))
except CatalogError as error:
    print(error)
"""


def test_an_unreadable_folder_is_named() -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to other users
        Path(folder).chmod(0o755)
        write_image(Path(folder) / "train/bag/a/1.jpg", 1)
        closed = Path(folder) / "train/bag/b"
        closed.mkdir(mode=0)
        result = subprocess.run([sys.executable, "-c", LIST, folder], capture_output=True, text=True, check=True)
        assert result.stdout == f"{closed} cannot be listed: Permission denied; make it readable\n"
        closed.chmod(0o700)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(
            b'{\n "bo": {\n  "a.png": {"question": "Is it?",}\n }\n}',
            r"qa\.json is not a JSON file: line 3, column (33|34): .*, near: '.*\"question\": \"Is it\?\",\}",
            id="a-comma-too-many",
        ),
        pytest.param(b'{"a": 1', r"line 1, column 8: Expecting ',' delimiter, near: '\{\"a\": 1'", id="cut-short"),
        pytest.param(b"", r"line 1, column 1: Expecting value", id="empty"),
        pytest.param(b"[]", r"expected a JSON object, found a list", id="a-list"),
        pytest.param(b'{"a": "\xff"}', r"byte 7 is not UTF-8; save it as UTF-8", id="latin-1"),
        pytest.param(b'{"a":' + b"[" * 100_000, "nested too deeply", id="a-bomb"),
    ],
)
def test_malformed_json_is_located(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "qa.json").write_bytes(content)
    with pytest.raises(CatalogError, match=message):
        load_json_object(tmp_path / "qa.json")


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "qa.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert load_json_object(tmp_path / "qa.json") == {"a": 1}


QUESTION = {"question": "What colour is <sks>?", "options": {"B": "red", "A": "blue"}, "correct_answer": "B"}


def test_questions_say_why_their_image_cannot_be_shown(root: Path) -> None:
    (root / "test/bag/b00/cut.jpg").write_bytes((root / "test/bag/b00/0.jpg").read_bytes()[:300])
    images = ["test/bag/b00/cut.jpg", "data/b00/gone.jpg", "data/b00/0.jpg", "data/test/b00/0.jpg"]
    (root / "visual-qa.json").write_text(json.dumps({"b00": dict.fromkeys(images, QUESTION)}))
    summary, output = build(root, CatalogConfig(max_quarantine_frac=0.2))
    [item] = load_jsonl(output / "questions.jsonl", VqaItem)
    assert item.image == "test/bag/b00/0.jpg"
    asides = load_jsonl(output / "quarantine.jsonl", SetAside)
    assert asides[0].path == "test/bag/b00/cut.jpg"
    assert [(entry.path.rpartition(" ")[2], entry.reason) for entry in asides[1:]] == [
        ("test/bag/b00/cut.jpg", f"the image was set aside: {asides[0].reason}"),
        ("data/b00/gone.jpg", "the image is missing: not among the 4 usable photos of bag/b00"),
        ("data/b00/0.jpg", "the image could be any of train/bag/b00/0.jpg, test/bag/b00/0.jpg"),
    ]
    assert summary["malformed_questions"] == 3


def test_two_files_of_questions_are_an_error(tmp_path: Path) -> None:
    for concept in ("bo", "mam", "henry"):
        write_image(tmp_path / f"root/train/{concept}/1.png", len(concept))
    for name in ("visual-qa.json", "yollava-visual-qa.json"):
        (tmp_path / "root" / name).write_text("{}")
    with pytest.raises(CatalogError, match=r"visual-qa\.json and yollava-visual-qa\.json; keep one of them"):
        build(tmp_path / "root")


def test_the_whole_list_of_a_stopped_run_is_kept(root: Path, tmp_path: Path) -> None:
    for index in range(7):
        (root / f"train/bag/b00/bad{index}.jpg").write_bytes(b"")
    (root / "train/bag/b00/text.jpg").write_text("x")
    (tmp_path / "work").mkdir()
    with pytest.raises(QuarantineError, match=r"8 of 24 images .*\(all of them: .*quarantine.jsonl\)") as caught:
        build(root, work_dir=tmp_path / "work")
    assert "7 × empty file (0 bytes)" in str(caught.value)
    listed = load_jsonl(tmp_path / "work/quarantine.jsonl", SetAside)
    assert [entry.path.rpartition("/")[2] for entry in listed] == [*(f"bad{n}.jpg" for n in range(7)), "text.jpg"]


def test_a_file_that_vanishes_before_it_is_opened_is_set_aside(root: Path) -> None:
    listed = list_data_root(root)
    (root / "train/bag/b00/0.jpg").unlink()
    with Readers(num_workers=2) as readers:
        found = inspect_files(listed, root, CatalogConfig(), readers, NullReporter())
    assert [(entry.path, entry.reason) for entry in found.unusable] == [
        ("train/bag/b00/0.jpg", "missing, or a link to nothing")
    ]
