"""Judging and refining descriptions, with models that say what the test says, and with the pocket model."""

import json
from pathlib import Path
from typing import Any

import pytest

from lewis_core import pipeline
from lewis_core.artifacts import ArtifactRef, ArtifactStore, digest_file
from lewis_core.config.base import ModelRef, Runtime
from lewis_core.config.processing import JudgeConfig, RefineMode
from lewis_core.descriptions.answers import Failure
from lewis_core.descriptions.formats import DescriptionItem
from lewis_core.descriptions.judge import Agreement, JudgedFile, Judgement, measure_agreement
from lewis_core.descriptions.refine import Change, Refined, choose_flagged, what_is_wrong
from lewis_core.errors import EvaluationError
from lewis_core.records import load_jsonl, load_record
from lewis_core.stages import run_stage
from lewis_core.testing import FakeModel, make_catalog, make_database, publish_files, write_tiny_language_model

CPU = Runtime(device="cpu", torch_threads=1)
POCKET = ModelRef(path="pocket:base", prompts="concise", dtype="float32", max_pixels=12544, min_pixels=12544)
TEXTS = {
    "mug/a": "The mug is red. It is on a table.",
    "mug/b": "It is steaming. The mug is blue. It has no logo.",
    "mug/c": "It is made of wood. The mug is green.",
    "mug/d": "It is on the grass.",
}


@pytest.fixture
def imported(tmp_path: Path) -> ArtifactRef:
    content = {
        key: {"name": key[-1], "category": "mug", "general": ["A photo of a mug"], "distinguishing features": [text]}
        for key, text in (*TEXTS.items(), ("mug/e", ""))
    }
    content["mug/e"]["general"] = []
    path = tmp_path / "descriptions_base.v1.json"
    path.write_text(json.dumps(content))
    arguments = {"name": path.name, "sha256": digest_file(path)}
    return run_stage(
        pipeline.IMPORT_DESCRIPTIONS, ArtifactStore(tmp_path / "store"), arguments, {"data_root": tmp_path}
    )


def judge(tmp_path: Path, descriptions: ArtifactRef, **config: Any) -> ArtifactRef:
    arguments = {"descriptions": descriptions, "config": JudgeConfig(**config)}
    return run_stage(pipeline.JUDGE_DESCRIPTIONS, ArtifactStore(tmp_path / "store"), arguments, {"runtime": CPU})


def refine(tmp_path: Path, descriptions: ArtifactRef, judged: ArtifactRef, mode: str, **config: Any) -> ArtifactRef:
    arguments = {
        "descriptions": descriptions, "judged": judged, "mode": mode, "config": JudgeConfig(**config),
        "name": "descriptions_base.v1.json",
    }  # fmt: skip
    return run_stage(pipeline.REFINE_DESCRIPTIONS, ArtifactStore(tmp_path / "store"), arguments, {"runtime": CPU})


def verdicts(judged: ArtifactRef) -> dict[str, tuple[bool, bool]]:
    response = load_record(judged.file("loc_state_stats.json"), JudgedFile).response
    return {line.id: (line.has_state, line.has_location) for line in response}


RIGHT = {"mug/a": (False, True), "mug/b": (True, False), "mug/c": (False, False), "mug/d": (False, True)}


@pytest.mark.parametrize("method", ["lexicon", "yes_no"])
def test_the_word_list_and_the_pocket_model_judge_rightly(tmp_path: Path, imported: ArtifactRef, method: str) -> None:
    judged = judge(tmp_path, imported, method=method, model=POCKET)
    assert verdicts(judged) == RIGHT
    stats = json.loads(judged.file("loc_state_stats.json").read_text())["stats"]
    # 5 words of the coarse text before each: 14, 16, 14, 10 words
    assert stats == {"mean_state": 1 / 4, "mean_location": 2 / 4, "mean_length": 54 / 4}
    assert load_jsonl(judged.file("failures.jsonl"), Failure) == [Failure(id="mug/e", reason="the file holds no text")]
    assert judged.summary["failed"] == 1
    agreed = [Agreement.model_validate(entry) for entry in json.loads(judged.file("agreement.json").read_text())]
    assert {(a.reader, a.about): (a.n, a.share, a.both) for a in agreed} == {
        ("lexicon", "state"): (4, 1, 1), ("lexicon", "location"): (4, 1, 2),
        ("exact", "state"): (4, 1, 1), ("exact", "location"): (4, 1, 2),
    }  # fmt: skip


def test_agreement_by_hand() -> None:
    items = [
        DescriptionItem(id=key, category="mug", general="", detailed=text)
        for key, text in (*TEXTS.items(), ("mug/x", "Nonsense on a table."))
    ]
    said = {item.id: Judgement(id=item.id, has_state=True, has_location=False) for item in items}
    found = {(a.reader, a.about): a for a in measure_agreement(items, said)}
    # an exact reader has nothing to say about the last text; it finds a state in one of the four others
    state = found["exact", "state"]
    assert (state.n, state.share, state.both, state.judge_only, state.reader_only, state.neither) == (
        4,
        1 / 4,
        1,
        3,
        0,
        0,
    )
    location = found["lexicon", "location"]
    assert (location.n, location.share, location.reader_only, location.neither) == (5, 2 / 5, 3, 2)


def test_a_model_that_writes_no_json_is_an_error_with_its_reason(tmp_path: Path, imported: ArtifactRef) -> None:
    model = ModelRef(path=str(write_tiny_language_model(tmp_path / "lm")))
    with pytest.raises(EvaluationError, match=r"5 of 5 texts could not be judged.*judge\.method"):
        judge(tmp_path, imported, model=model, max_new_tokens=16, attempts=2)
    with pytest.raises(EvaluationError, match="the model wanted to say something else"):
        judge(tmp_path, imported, method="yes_no", model=model)


def test_failures_end_the_run_only_when_asked_to(tmp_path: Path, imported: ArtifactRef) -> None:
    with pytest.raises(EvaluationError, match=r"1 of 5 texts could not be judged, e\.g\. 'mug/e'"):
        judge(tmp_path, imported, method="lexicon", fail_on_error=True)


LEFT = {"mug/a": "The mug is red.", "mug/b": "The mug is blue. It has no logo.", "mug/d": "It is on the grass."}
"""Of the last text nothing would be left, so it stays as it is."""


@pytest.mark.parametrize(
    ("mode", "flagged"),
    [
        ("state", {"mug/b"}),
        ("location", {"mug/a", "mug/d"}),
        ("location_and_state", {"mug/a", "mug/b", "mug/d"}),
    ],
)
def test_the_word_list_drops_sentences_of_flagged_texts_only(
    tmp_path: Path, imported: ArtifactRef, mode: str, flagged: set[str]
) -> None:
    left = {key: text for key, text in LEFT.items() if key in flagged}
    refined = refine(tmp_path, imported, judge(tmp_path, imported, method="lexicon"), mode, method="lexicon")
    assert {change.id: change.detailed for change in load_jsonl(refined.file("changes.jsonl"), Change)} == left
    written = json.loads(refined.file(f"descriptions_base_{mode}_refined.json").read_text())
    assert {key: entry["distinguishing features"][0] for key, entry in written.items()} == {
        **TEXTS,
        "mug/e": "",
        **left,
    }
    failures = load_jsonl(refined.file("failures.jsonl"), Failure)
    assert [failure.id for failure in failures] == (["mug/d#detailed"] if "location" in mode else [])
    again = verdicts(judge(tmp_path, refined, method="lexicon"))
    assert again["mug/b"] == (mode == "location", False)


def test_a_model_s_texts_are_checked_and_taken(
    tmp_path: Path, imported: ArtifactRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(image: str | None, prompt: str) -> str:
        items = json.loads(prompt.rpartition("Input:\n")[2].splitlines()[0])
        texts = {"It is on the grass.": "A golden dragon with seven purple tails."}
        refined = [
            {"id": item["id"], "text": texts.get(item["text"], item["text"].split(" It is on")[0])} for item in items
        ]
        return json.dumps(refined)

    monkeypatch.setattr("lewis_core.models.text.open_text_model", lambda ref, runtime: FakeModel(writes=write))
    refined = refine(tmp_path, imported, judge(tmp_path, imported, method="lexicon"), "location")
    changes = {change.id: change for change in load_jsonl(refined.file("changes.jsonl"), Change)}
    assert changes["mug/a"].detailed == "The mug is red."
    assert changes["mug/a"].general == "A photo of a mug"
    assert changes["mug/d"].detailed == changes["mug/d"].detailed_before
    failure = load_jsonl(refined.file("failures.jsonl"), Failure)[0]
    assert (failure.id, failure.attempts) == ("mug/d#detailed", 3)
    assert "the refined text has 7 words, the original 5" in failure.reason


def test_what_is_no_refined_text() -> None:
    def wrong(text: str) -> str | None:
        return what_is_wrong(Refined(id="t", text=text), "The mug is red and lies on a table.")

    assert wrong("The mug is red.") is None
    assert wrong("This red mug here.") is None  # two new words mend a sentence
    assert "holds no word" in str(wrong("..."))
    assert "has 10 words, the original 9" in str(wrong("The mug is red and lies on a table, really."))
    assert "big, golden, dragon" in str(wrong("A big golden dragon."))


def test_flagged_texts_follow_the_mode() -> None:
    items = [DescriptionItem(id=key, general="", detailed="x") for key in "abc"]
    file = JudgedFile.model_validate(
        {
            "stats": {"mean_state": 0, "mean_location": 0, "mean_length": 0},
            "response": [
                {"id": "a", "has_state": True, "has_location": False, "length": 1, "text": "x"},
                {"id": "b", "has_state": False, "has_location": True, "length": 1, "text": "x"},
            ],
        }
    )
    modes: tuple[RefineMode, ...] = ("state", "location", "location_and_state")
    flagged = {mode: [item.id for item in choose_flagged(items, file.response, mode)] for mode in modes}
    assert flagged == {"state": ["a"], "location": ["b"], "location_and_state": ["a", "b"]}


def test_a_database_is_judged_as_it_is(tmp_path: Path) -> None:
    catalog = make_catalog({"mug": 2})
    first, second = (concept.id for concept in catalog.concepts)
    database = make_database(catalog, {first: "It is on a table.", second: None})
    ref = publish_files(tmp_path, "describe-concepts", {"database.json": database.model_dump_json()})
    judged = judge(tmp_path, ref, method="lexicon")
    assert verdicts(judged) == {first: (False, True)}
    assert [failure.reason for failure in load_jsonl(judged.file("failures.jsonl"), Failure)] == ["expected <coarse>"]
