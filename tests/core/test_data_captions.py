"""Captions of photos are kept, and become questions when that is wanted."""

import json
from pathlib import Path

import pytest

from lewis_core.config.base import Runtime
from lewis_core.config.data import CatalogConfig
from lewis_core.data.captions import QUESTION, CaptionItem, hide_name, make_questions
from lewis_core.data.catalog import build_catalog
from lewis_core.data.layout import SetAside
from lewis_core.errors import CatalogError
from lewis_core.records import Catalog, Concept, ImageRecord, JsonObject, VqaItem, load_jsonl
from lewis_core.reporting import NullReporter
from lewis_core.testing import write_image

CAPTIONS: dict[str, object] = {
    "1.jpg": ["red_piggy_bank on a table", "The red piggy bank again"],
    "2.JPG": ["A hand holding red piggy bank"],
    "9.jpg": ["gone"],
    "3.jpg": "no list",
}


def build(root: Path, **settings: bool) -> tuple[JsonObject, Path]:
    output = root.with_name(f"out{len(list(root.parent.iterdir()))}")
    output.mkdir()
    config = CatalogConfig(train_images=2, **settings)
    return build_catalog("f", output, config, root, Runtime(num_workers=1), NullReporter()), output


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """MyVLM's piggy bank with three photos, two of them with usable captions."""
    for number, name in enumerate(("1.jpg", "2.JPG", "3.jpg")):
        write_image(tmp_path / "root/red_piggy_bank" / name, number)
    (tmp_path / "root/red_piggy_bank/captions.json").write_text(json.dumps(CAPTIONS))
    return tmp_path / "root"


def test_captions_come_along(root: Path) -> None:
    summary, output = build(root)
    assert load_jsonl(output / "captions.jsonl", CaptionItem) == [
        CaptionItem(
            concept="all/red_piggy_bank",
            image="red_piggy_bank/1.jpg",
            captions=("red_piggy_bank on a table", "The red piggy bank again"),
        ),
        CaptionItem(
            concept="all/red_piggy_bank",
            image="red_piggy_bank/2.JPG",
            captions=("A hand holding red piggy bank",),
        ),
    ]
    assert [(entry.path, entry.reason) for entry in load_jsonl(output / "quarantine.jsonl", SetAside)] == [
        ("red_piggy_bank/captions.json: 9.jpg", "the image is missing or cannot be used"),
        ("red_piggy_bank/captions.json: 3.jpg", "expected a list of texts, found 'no list'"),
    ]
    assert (summary["captions"], summary["malformed_captions"], summary["other_files"]) == (2, 2, 0)
    assert "questions" not in summary
    assert not (output / "questions.jsonl").exists()


def test_captions_become_questions_that_do_not_name_the_thing(root: Path) -> None:
    summary, output = build(root, caption_questions=True)
    first, second = load_jsonl(output / "questions.jsonl", VqaItem)
    table, hand = "my piggy bank on a table", "A hand holding my piggy bank"
    assert (first.image, first.question, first.options[first.correct]) == ("red_piggy_bank/1.jpg", QUESTION, table)
    assert (second.image, second.options[second.correct]) == ("red_piggy_bank/2.JPG", hand)
    assert set(first.options) == set(second.options) == {table, hand}
    assert summary["questions"] == 2


def test_a_malformed_caption_file_is_located(root: Path) -> None:
    (root / "red_piggy_bank/captions.json").write_text('{"1.jpg": [}')
    with pytest.raises(CatalogError, match=r"captions\.json is not a JSON file: line 1, column 12"):
        build(root)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("S* on a shelf", "my bank on a shelf"),
        ("A photo of <sks>.", "A photo of my bank."),
        ("a photo of sks on sand", "a photo of my bank on sand"),
        ("Red Piggy-Bank and tasks", "my bank and tasks"),
        ("red_piggy_banks", "red_piggy_banks"),
    ],
)
def test_names_are_hidden(caption: str, expected: str) -> None:
    assert hide_name(caption, Concept(category="all", category_word="bank", name="red_piggy_bank")) == expected


def test_a_thing_with_one_caption_has_no_question_and_answers_are_balanced() -> None:
    photos = [ImageRecord(path=f"a/{n}.jpg", sha256=str(n), width=1, height=1) for n in range(200)]
    many = Concept(category="all", category_word="mug", name="a", train=tuple(photos))
    catalog = Catalog(concepts=(many,))
    items = [CaptionItem(concept="all/a", image=p.path, captions=(f"caption {n}",)) for n, p in enumerate(photos)]
    assert make_questions(items[:1], catalog, 0) == []
    questions = make_questions(items, catalog, 0)
    assert 70 <= sum(question.correct for question in questions) <= 130
    assert questions == make_questions(items, catalog, 0)
