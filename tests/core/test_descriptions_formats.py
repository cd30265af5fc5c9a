"""Files of descriptions: three formats, told apart by content, read and written back."""

import json
from pathlib import Path
from typing import Any

import pytest

from lewis_core.artifacts import digest_file
from lewis_core.descriptions.formats import (
    DescriptionItem,
    import_descriptions,
    load_content,
    read_items,
    replace_texts,
)
from lewis_core.errors import DataError
from lewis_core.records import Database, load_jsonl
from lewis_core.testing import make_catalog, make_database

CATALOG = make_catalog({"mug": 2})
FIRST, SECOND = (concept.id for concept in CATALOG.concepts)
DESCRIPTIONS = {
    "bo": {
        "name": "bo",
        "category": "dog",
        "general": ["A photo of a dog."],
        "distinguishing features": ["The dog is tan."],
    },
    "al": {"name": "al", "category": "cat", "general": "A photo of a cat", "distinguishing features": []},
}
REFERENCE_DATABASE = {
    "concept_dict": {
        "<bo>": {
            "name": "bo",
            "image": "x.jpg",
            "info": {"category": "dog", "general": ["A photo of a dog."], "distinct features": ["Tan.", "Small."]},
        }
    },
    "path_to_concept": {"x.jpg": "<bo>"},
}  # fmt: skip


def own() -> Any:
    return make_database(CATALOG, {FIRST: "The mug is red.", SECOND: None}).model_dump(mode="json")


def test_each_format_is_read() -> None:
    kind, items = read_items(own(), "a.json")
    assert kind == "database"
    assert items[0] == DescriptionItem(
        id=FIRST, category="cat-mug", general="A photo of a mug", detailed="The mug is red."
    )
    assert items[0].text == "A photo of a mug. The mug is red."
    assert (items[1].text, items[1].error) == ("", "expected <coarse>")
    kind, items = read_items(DESCRIPTIONS, "b.json")
    assert kind == "reference_descriptions"
    assert [(item.id, item.category, item.text) for item in items] == [
        ("bo", "dog", "A photo of a dog. The dog is tan."),
        ("al", "cat", "A photo of a cat"),
    ]
    kind, items = read_items(REFERENCE_DATABASE, "c.json")
    assert kind == "reference_database"
    assert [(item.id, item.category, item.detailed) for item in items] == [("<bo>", "dog", "Tan. Small.")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected a database.json .* found a list"),
        ({"a": 1}, r"found the keys \['a'\]"),
        ({}, "is no file of descriptions"),
        ({"concept_dict": {}}, "holds no description"),
        ({"concept_dict": {"<bo>": {"name": "bo"}}}, "'<bo>': expected 'general'"),
        ({"bo": {"general": [1]}}, "'bo': expected text or a list of texts"),
        ({"speaker": "base", "entries": [{}]}, "not a database"),
    ],
)
def test_what_is_none_of_them_is_named(content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_items(content, "x.json")


def test_an_id_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text('{"bo": {"general": "a"}, "bo": {"general": "b"}}')
    with pytest.raises(DataError, match="'bo' is there twice"):
        load_content(path)
    database = own()
    database["entries"].append(database["entries"][0])
    with pytest.raises(DataError, match="is described twice"):
        read_items(database, "d.json")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        load_content(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"a":\n nonsense}')
    with pytest.raises(DataError, match="line 2, column 2"):
        load_content(tmp_path / "bad.json")


def test_texts_are_written_back_in_the_file_s_own_form() -> None:
    changed = replace_texts(own(), "database", {FIRST: ("A mug", "Red.")})
    database = Database.model_validate(changed)
    assert database.entries[0].text == "A mug. Red."
    assert database.entries[1].description is None
    changed = replace_texts(DESCRIPTIONS, "reference_descriptions", {"bo": ("A dog", "Tan.")})
    assert changed["bo"] == {**DESCRIPTIONS["bo"], "general": ["A dog"], "distinguishing features": ["Tan."]}
    assert changed["al"] == DESCRIPTIONS["al"]
    changed = replace_texts(DESCRIPTIONS, "reference_descriptions", {"al": ("A cat", "Black.")})
    assert (changed["al"]["general"], changed["al"]["distinguishing features"]) == ("A cat", ["Black."])
    assert DESCRIPTIONS["bo"]["general"] == ["A photo of a dog."]  # the original is as it was
    changed = replace_texts(REFERENCE_DATABASE, "reference_database", {"<bo>": ("A dog", "Tan.")})
    assert changed["concept_dict"]["<bo>"]["info"]["distinct features"] == ["Tan."]
    assert changed["path_to_concept"] == {"x.jpg": "<bo>"}


def test_the_stage_keeps_the_file_and_checks_its_digest(tmp_path: Path) -> None:
    path, out = tmp_path / "descriptions_base.json", tmp_path / "out"
    path.write_text(json.dumps(DESCRIPTIONS))
    out.mkdir()
    summary = import_descriptions(path.name, digest_file(path), out, tmp_path)
    assert summary == {
        "file": path.name, "format": "reference_descriptions", "items": 2, "without_text": 0,
    }  # fmt: skip
    assert load_jsonl(out / "items.jsonl", DescriptionItem)[0].id == "bo"
    assert json.loads((out / "source.json").read_text()) == DESCRIPTIONS
    with pytest.raises(DataError, match="was changed"):
        import_descriptions(path.name, "0" * 64, out, tmp_path)
