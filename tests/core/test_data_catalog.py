"""A folder of photos becomes a catalog; everything that does not is named and counted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from pydantic import ValidationError

from lewis_core.config.base import Runtime
from lewis_core.config.data import CatalogConfig
from lewis_core.data.catalog import build_catalog, choose_train_images
from lewis_core.data.images import MAX_PIXELS
from lewis_core.data.layout import SetAside
from lewis_core.errors import CatalogError, QuarantineError
from lewis_core.records import Catalog, ImageRecord, JsonObject, VqaItem, load_jsonl, load_record
from lewis_core.reporting import NullReporter
from lewis_core.testing import write_image, write_photo_tree


def build(root: Path, config: CatalogConfig = CatalogConfig(), workers: int = 2) -> tuple[JsonObject, Catalog, Path]:
    """Build in a fresh folder beside the root: summary, catalog, folder."""
    output = root.with_name(f"{root.name}-out{len(list(root.parent.iterdir()))}")
    output.mkdir()
    summary = build_catalog("f", output, config, root, Runtime(num_workers=workers), NullReporter())
    return summary, load_record(output / "catalog.json", Catalog), output


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two categories of two concepts with two photos in each of train and test: 16 photos."""
    write_photo_tree(tmp_path / "root", concepts=2, photos=2)
    return tmp_path / "root"


def test_catalog_of_a_clean_tree(root: Path) -> None:
    summary, catalog, output = build(root)
    assert [concept.id for concept in catalog.concepts] == ["bag/b00", "bag/b01", "mug/m00", "mug/m01"]
    first = catalog.concepts[0]
    assert [image.path for image in first.train] == ["train/bag/b00/0.jpg", "train/bag/b00/1.jpg"]
    assert [image.path for image in first.test] == ["test/bag/b00/0.jpg", "test/bag/b00/1.jpg"]
    assert (first.category_word, first.train[0].width) == ("bag", 32)
    assert summary == {
        "layout": "folders",
        "layout_evidence": [
            "train and test folders, images in <category>/<concept>, e.g. train/bag/b00/0.jpg",
            "no sign of a known data set",
        ],
        "categories": 2, "concepts": 4, "train_images": 8, "test_images": 8, "negative_images": 0,
        "empty_categories": [], "concepts_without_image": [], "concepts_with_one_image": [],
        "categories_with_one_concept": [], "quarantined": 0, "other_files": 0,
        **{
            f"{kind}_{where}": 0
            for kind in ("duplicates", "near_duplicates")
            for where in ("across_concepts", "across_splits", "among_negatives")
        },
    }  # fmt: skip
    assert sorted(path.name for path in output.iterdir()) == [
        "catalog.json", "contact_sheet.jpg", "duplicates.jsonl", "near_duplicates.jsonl", "quarantine.jsonl",
        "statistics.json",
    ]  # fmt: skip


def test_concepts_are_sorted_by_id_whichever_folder_they_are_found_in(tmp_path: Path) -> None:
    write_image(tmp_path / "root/test/mug/a/0.jpg", 1)
    write_image(tmp_path / "root/train/bag/b/0.jpg", 2)
    assert [concept.id for concept in build(tmp_path / "root")[1].concepts] == ["bag/b", "mug/a"]


def test_what_cannot_be_used_is_named(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "train/bag/b00/zero.jpg").write_bytes(b"")
    (root / "train/bag/b00/text.jpg").write_text("hello")
    (root / "train/bag/b00/captions.txt").write_text("hello")
    (root / "train/bag/loop").symlink_to(root)
    summary, catalog, output = build(root, CatalogConfig(max_quarantine_frac=0.2))
    assert len(catalog.concepts) == 4
    assert load_jsonl(output / "quarantine.jsonl", SetAside) == [
        SetAside(path="train/bag/b00/text.jpg", reason="not an image"),
        SetAside(path="train/bag/b00/zero.jpg", reason="empty file (0 bytes)"),
        SetAside(path="train/bag/loop", reason="a loop: links to a folder that it lies in; not followed"),
        SetAside(path="train/bag/b00/captions.txt", reason="not an image"),
    ]
    assert (summary["quarantined"], summary["other_files"]) == (3, 1)
    assert caplog.messages[-1] == (
        "3 of 19 images cannot be used (all: the catalog's quarantine.jsonl): train/bag/b00/text.jpg: not an image; "
        "train/bag/b00/zero.jpg: empty file (0 bytes); "
        "train/bag/loop: a loop: links to a folder that it lies in; not followed"
    )


def test_too_much_quarantine_stops_the_run_and_names_files(root: Path) -> None:
    for index in range(7):
        (root / f"train/bag/b00/bad{index}.jpg").write_bytes(b"")
    # 7 of 16 + 7 = 23 images: 0.304
    assert build(root, CatalogConfig(max_quarantine_frac=0.31))[0]["quarantined"] == 7
    with pytest.raises(QuarantineError, match="7 of 23 images") as caught:
        build(root, CatalogConfig(max_quarantine_frac=0.3))
    text = str(caught.value)
    assert "train/bag/b00/bad0.jpg: empty file (0 bytes)" in text
    assert "train/bag/b00/bad5.jpg" not in text
    assert "… and 2 more" in text


def test_files_that_do_not_claim_to_be_images_do_not_count_for_the_limit(root: Path) -> None:
    (root / "train/bag/b00/a.txt").write_text("note")
    assert build(root, CatalogConfig(max_quarantine_frac=0))[0]["other_files"] == 1


def test_empty_categories_and_concepts_are_named_and_left_out(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "train/hat").mkdir()
    (root / "train/mug/m09").mkdir()
    (root / "train/shoe/s00").mkdir(parents=True)
    (root / "train/shoe/s00/0.jpg").write_bytes(b"")
    summary, catalog, _ = build(root, CatalogConfig(max_quarantine_frac=0.1))
    assert summary["empty_categories"] == ["hat", "shoe"]
    assert summary["concepts_without_image"] == ["mug/m09", "shoe/s00"]
    assert catalog.categories == ("bag", "mug")
    assert "2 categories without a usable image, left out: hat, shoe" in caplog.text


def test_one_name_in_two_categories_is_two_concepts(tmp_path: Path) -> None:
    write_image(tmp_path / "root/train/bag/same/0.jpg", 1)
    write_image(tmp_path / "root/train/mug/same/0.jpg", 2)
    _, catalog, _ = build(tmp_path / "root")
    assert [concept.id for concept in catalog.concepts] == ["bag/same", "mug/same"]


def test_unicode_and_spaces_survive(tmp_path: Path) -> None:
    write_image(tmp_path / "root/train/tro_bag/mein Köfferchen/foto 1 – ü.jpg", 1)
    concept = build(tmp_path / "root")[1].concepts[0]
    assert concept.id == "tro_bag/mein Köfferchen"
    assert concept.category_word == "trolley bag"
    assert concept.train[0].path == "train/tro_bag/mein Köfferchen/foto 1 – ü.jpg"


def test_a_concept_with_negatives_only_is_left_out(tmp_path: Path) -> None:
    write_image(tmp_path / "root/train/bag/a/0.jpg", 1)
    write_image(tmp_path / "root/train/bag/a/laion/0.jpg", 2)
    write_image(tmp_path / "root/train/bag/b/laion/0.jpg", 3)
    summary, catalog, _ = build(tmp_path / "root")
    assert [image.path for image in catalog.concepts[0].negative] == ["train/bag/a/laion/0.jpg"]
    assert summary["concepts_without_image"] == ["bag/b"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda root: None, "no data root at", id="missing"),
        pytest.param(lambda root: root.mkdir(), "no images in .*; expected <root>/", id="empty"),
        pytest.param(lambda root: (root / "train/bag").mkdir(parents=True), "no images in", id="empty-category"),
        pytest.param(lambda root: write_image(root / "bag/a/1.jpg", 1), r"set|catalog\.train_images", id="unsplit"),
    ],
)
def test_a_folder_without_a_data_set_is_a_clear_error(tmp_path: Path, make, message: str) -> None:
    make(tmp_path / "root")
    with pytest.raises(CatalogError, match=message):
        build(tmp_path / "root")


def test_nothing_usable_is_an_error_even_when_everything_may_be_set_aside(tmp_path: Path) -> None:
    (tmp_path / "root/train/bag/a").mkdir(parents=True)
    (tmp_path / "root/train/bag/a/0.jpg").write_bytes(b"")
    with pytest.raises(CatalogError, match="no usable image in"):
        build(tmp_path / "root", CatalogConfig(max_quarantine_frac=1))


def picture(name: str, sha256: str) -> ImageRecord:
    return ImageRecord(path=name, sha256=sha256, width=1, height=1)


def test_unsplit_images_are_chosen_by_content() -> None:
    images = [picture(f"{index}.jpg", f"sha{index}") for index in range(6)]
    train, test = choose_train_images(images, 4, 23, "bag", "a")
    assert (len(train), len(test)) == (4, 2)
    assert sorted([*train, *test], key=lambda image: image.path) == images
    renamed = [picture(f"{9 - index}.jpg", f"sha{index}") for index in range(6)]
    assert {i.sha256 for i in choose_train_images(renamed, 4, 23, "bag", "a")[0]} == {i.sha256 for i in train}
    choices = {frozenset(i.sha256 for i in choose_train_images(images, 3, seed, "bag", "a")[0]) for seed in range(20)}
    assert len(choices) > 5


def test_unsplit_copies_of_a_picture_stay_together() -> None:
    images = [picture("a", "x"), picture("b", "x"), picture("c", "y")]
    train, test = choose_train_images(images, 1, 0, "bag", "a")
    assert {image.sha256 for image in train}.isdisjoint({image.sha256 for image in test})
    assert len(train) + len(test) == 3


def test_unsplit_layout_is_split_per_concept(tmp_path: Path) -> None:
    write_photo_tree(tmp_path / "tree", categories=("bag",), concepts=2, photos=4)
    _, catalog, _ = build(tmp_path / "tree" / "train", CatalogConfig(train_images=3))
    assert [(len(concept.train), len(concept.test)) for concept in catalog.concepts] == [(3, 1), (3, 1)]


QUESTION = {"question": "What colour is <sks>?", "options": {"B": "red", "A": "blue"}, "correct_answer": "B"}


def test_questions_and_facts_come_along(root: Path) -> None:
    (root / "facts.json").write_text('{"a": 1}')
    (root / "visual-qa.json").write_text(
        json.dumps(
            {
                "mug/m00": {
                    "test/mug/m00/1.jpg": [QUESTION, QUESTION | {"correct_answer": "blue"}],
                    "": QUESTION | {"question": "What colour is <m00>?"},
                },
                "b00": {"./data/root/test/bag/b00/0.jpg": QUESTION},
                "nobody": {"a.jpg": QUESTION},
                "b01": {
                    "test/bag/b00/0.jpg": QUESTION,
                    "test/bag/b01/7.jpg": QUESTION,
                    "test/bag/b01/0.jpg": [
                        QUESTION | {"correct_answer": "C"},
                        QUESTION | {"options": {"A": "one"}},
                        QUESTION | {"question": 3},
                        "what?",
                    ],
                },
                "m01": "nothing",
            }
        )
    )
    summary, _, output = build(root)
    items = load_jsonl(output / "questions.jsonl", VqaItem)
    assert [(item.id, item.concept, item.image, item.correct) for item in items] == [
        ("bag/b00:0", "bag/b00", "test/bag/b00/0.jpg", 1),
        ("mug/m00:0", "mug/m00", "test/mug/m00/1.jpg", 1),
        ("mug/m00:1", "mug/m00", "test/mug/m00/1.jpg", 0),
        ("mug/m00:2", "mug/m00", None, 1),
    ]
    assert {item.question for item in items} == {"What colour is <sks>?"}, "names never reach a prompt"
    assert items[0].options == ("blue", "red")
    assert (output / "facts.json").read_text() == '{"a": 1}'
    reasons = [(e.path, e.reason) for e in load_jsonl(output / "quarantine.jsonl", SetAside)]
    assert reasons == [
        ("visual-qa.json: nobody: a.jpg", "no such concept in the catalog"),
        (
            "visual-qa.json: b01: test/bag/b00/0.jpg",
            "the image is missing: not among the 4 usable photos of bag/b01",
        ),
        (
            "visual-qa.json: b01: test/bag/b01/7.jpg",
            "the image is missing: not among the 4 usable photos of bag/b01",
        ),
        (
            "visual-qa.json: b01: test/bag/b01/0.jpg",
            "key 'correct_answer': expected one of A, B, found 'C'",
        ),
        (
            "visual-qa.json: b01: test/bag/b01/0.jpg",
            "key 'options': expected an object of two or more letters with their texts",
        ),
        ("visual-qa.json: b01: test/bag/b01/0.jpg", "key 'question': expected text"),
        (
            "visual-qa.json: b01: test/bag/b01/0.jpg",
            "expected an object with question, options and correct_answer, found 'what?'",
        ),
        ("visual-qa.json: m01: ", "expected an object with question, options and correct_answer, found 'nothing'"),
    ]
    assert (summary["questions"], summary["malformed_questions"], summary["quarantined"]) == (4, 8, 0)


def test_a_name_that_two_concepts_share_needs_its_category(tmp_path: Path) -> None:
    write_image(tmp_path / "root/train/bag/same/0.jpg", 1)
    write_image(tmp_path / "root/train/mug/same/0.jpg", 2)
    (tmp_path / "root/visual-qa.json").write_text(json.dumps({"same": {"": QUESTION}}))
    _, _, output = build(tmp_path / "root")
    [entry] = load_jsonl(output / "quarantine.jsonl", SetAside)
    assert entry.reason == "the name is not unique; write category/name: bag/same, mug/same"


@pytest.mark.parametrize("name", ["visual-qa.json", "facts.json"])
@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_companion_that_is_not_json_is_an_error(root: Path, name: str, content: str) -> None:
    (root / name).write_text(content)
    with pytest.raises(CatalogError, match=name):
        build(root)


BUILD = """
import os, sys
from pathlib import Path
listed = os.listdir
os.listdir = lambda *arguments: sorted(listed(*arguments), reverse=sys.argv[3] == "1")
from lewis_core.config import Runtime
from lewis_core.config.data import CatalogConfig
from lewis_core.data.catalog import build_catalog
from lewis_core.reporting import NullReporter
output = Path(sys.argv[2])
output.mkdir()
config = CatalogConfig(train_images=2, max_quarantine_frac=1)
build_catalog("f", output, config, Path(sys.argv[1]), Runtime(num_workers=int(sys.argv[3])), NullReporter())
"""


def test_bytes_do_not_depend_on_process_workers_or_order(tmp_path: Path) -> None:
    write_photo_tree(tmp_path / "tree", concepts=3, photos=4)
    tree = tmp_path / "tree" / "train"
    (tree / "bag/b00/bad.jpg").write_bytes(b"")
    (tree / "bag/b01/bad.jpg").write_bytes(b"")
    (tree / "mug/m00/0.jpg").write_bytes((tree / "bag/b00/0.jpg").read_bytes())
    outputs = []
    for workers, hash_seed in (("1", "1"), ("4", "2")):
        output = tmp_path / f"out{workers}"
        command = [sys.executable, "-c", BUILD, str(tree), str(output), workers]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": hash_seed})
        outputs.append({path.name: path.read_bytes() for path in output.iterdir()})
    assert outputs[0] == outputs[1]
    assert len(outputs[0]["quarantine.jsonl"].splitlines()) == 2
    assert len(outputs[0]["duplicates.jsonl"].splitlines()) == 1


def test_giant_images_are_set_aside(root: Path) -> None:
    Image.new("RGB", (40, 40)).save(root / "train/bag/b00/big.png")
    summary, _, output = build(root, CatalogConfig(max_image_pixels=1024, max_quarantine_frac=0.1))
    assert summary["quarantined"] == 1
    assert "40 × 40 pixels, more than 1024 allowed" in (output / "quarantine.jsonl").read_text()


@pytest.mark.parametrize("content", [{}, {"nobody": {"a.jpg": []}}, {"nobody": "nothing"}])
def test_questions_none_of_which_can_be_used_leave_no_file(
    root: Path, content: JsonObject, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "visual-qa.json").write_text(json.dumps(content))
    summary, _, output = build(root)
    assert summary["questions"] == 0
    assert not (output / "questions.jsonl").exists()
    assert "visual-qa.json has no question that can be used" in caplog.text


def test_strips_are_set_aside(root: Path) -> None:
    Image.new("RGB", (2, 401)).save(root / "train/bag/b00/strip.png")  # 401 > 200 · 2
    Image.new("RGB", (2, 400)).save(root / "train/bag/b00/longest.png")
    summary, catalog, output = build(root, CatalogConfig(max_quarantine_frac=0.1))
    assert summary["quarantined"] == 1
    [aside] = load_jsonl(output / "quarantine.jsonl", SetAside)
    assert aside.path == "train/bag/b00/strip.png"
    assert "a strip of 2 × 401 pixels, longer than 200 times its width" in aside.reason
    assert "train/bag/b00/longest.png" in {image.path for image in catalog.concept("bag/b00").train}


def test_the_catalog_takes_no_larger_images_than_later_stages() -> None:
    assert CatalogConfig(max_image_pixels=MAX_PIXELS).max_image_pixels == MAX_PIXELS
    with pytest.raises(ValidationError, match="less than or equal to 100000000"):
        CatalogConfig(max_image_pixels=MAX_PIXELS + 1)
