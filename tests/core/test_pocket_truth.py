"""Exact measurements, with the numbers worked out by hand."""

import json
from pathlib import Path

import pytest

from lewis_core.errors import DataError
from lewis_core.pocket.truth import build_questions, check_description, exact_reader_scores, load_facts

FACTS = {
    "category": "mug",
    "concept": "bcd",
    "split": "test",
    "color": "red",
    "pattern": "white dots",
    "material": "metal",
    "shape": "slim",
    "logo": "none",
    "part": "blue",
    "pose": "upright",
    "state": "steaming",
    "location": "snow",
}


def test_description_is_checked_fact_by_fact() -> None:
    text = "The mug is red. It has white dots. It is made of wood. It is a red mug. It is in the snow."
    text = f"{text} It is. It is tilted."
    truth = check_description(text, FACTS, "A photo of a mug")
    assert truth.category_right is True
    assert truth.named == ("color", "pattern", "material")
    assert truth.right == ("color", "pattern")
    assert truth.precision == 2 / 3
    assert truth.recall == 2 / 6
    assert (truth.mentions_state, truth.mentions_location) == (True, True)
    assert (truth.num_statements, truth.num_repeated, truth.num_unparsed) == (6, 1, 1)


def test_contradicted_fact_is_not_right() -> None:
    truth = check_description("The mug is red. The mug is green.", FACTS)
    assert (truth.named, truth.right, truth.num_repeated) == (("color",), (), 1)


def test_empty_description_has_no_precision() -> None:
    truth = check_description("", FACTS, "nonsense")
    assert (truth.precision, truth.recall, truth.category_right) == (None, 0, None)


def test_wrong_category_is_seen() -> None:
    assert check_description("The mug is red.", FACTS, "A photo of a bag").category_right is False


def test_exact_reader_prefers_the_thing_that_is_described() -> None:
    other = {**FACTS, "color": "blue", "shape": "wide"}
    scores = exact_reader_scores("The mug is red. It has a slim shape. It has no logo. It.", [FACTS, other])
    assert scores == [3 - 0 - 1, 1 - 2 - 1]


def test_exact_reader_counts_a_repeated_fact_once() -> None:
    assert exact_reader_scores("The mug is red. It is a red mug. The mug is red.", [FACTS]) == [1]


def test_questions_ask_every_identity_fact_about_test_photos() -> None:
    facts = {
        "train/mug/bcd/0.jpg": {**FACTS, "split": "train"},
        "test/mug/bcd/0.jpg": FACTS,
        "test/mug/bcd/1.jpg": FACTS,
    }
    questions = build_questions(facts, seed=1)
    assert list(questions) == ["mug/bcd"]
    assert {path: len(entries) for path, entries in questions["mug/bcd"].items()} == {
        "test/mug/bcd/0.jpg": 3,
        "test/mug/bcd/1.jpg": 3,
    }
    entries = [entry for asked in questions["mug/bcd"].values() for entry in asked]
    answers = {entry["question"]: entry["options"][entry["correct_answer"]] for entry in entries}
    assert answers == {
        "What color is the mug?": "red",
        "What pattern does the mug have?": "white dots",
        "What is the mug made of?": "metal",
        "What shape is the mug?": "slim",
        "What logo is on the mug?": "none",
        "What color is the handle?": "blue",
    }
    sizes = {entry["question"]: len(set(entry["options"].values())) for entry in entries}
    assert sizes.pop("What shape is the mug?") == 3
    assert set(sizes.values()) == {4}
    assert questions == build_questions(facts, seed=1)


def test_facts_are_read_back_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps({"test/mug/bcd/0.jpg": FACTS}))
    assert load_facts(tmp_path) == {"test/mug/bcd/0.jpg": FACTS}
    path.write_text(json.dumps({"test/mug/bcd/0.jpg": {"color": "red"}}))
    with pytest.raises(DataError, match=r"test/mug/bcd/0\.jpg: expected \['category', 'concept'"):
        load_facts(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        load_facts(tmp_path)
