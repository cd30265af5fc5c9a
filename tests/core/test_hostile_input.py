"""Whatever a model writes, a disk returns or a person types: it is read rightly, or refused with a reason.

Completions, JSON answers, files of records, manifests and settings, with hypothesis as the adversary.
"""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from flows.settings import validate
from lewis_core.artifacts import MANIFEST, ArtifactStore, Manifest
from lewis_core.config.pipeline import PipelineConfig
from lewis_core.descriptions.answers import Answer, AnswerFile, find_json, read_answers
from lewis_core.descriptions.parse import FIELDS, parse_description, parse_lenient
from lewis_core.errors import ConfigError, DataError, DescriptionError
from lewis_core.records import Catalog, Splits, load_jsonl, load_record, save_jsonl
from lewis_core.testing import publish_files

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
tags = st.sampled_from([*(f"<{f}>" for f in FIELDS), *(f"</{f}>" for f in FIELDS), "<state>", "<|im_end|>", "</", "<"])
completions = st.lists(st.one_of(tags, st.text(max_size=12), st.sampled_from(["\n", " ", "…", "\ud800"])), max_size=14)


@given(parts=completions)
@settings(max_examples=200, deadline=None)
def test_a_completion_is_a_description_or_says_why_not(parts: list[str]) -> None:
    text = "".join(parts)
    for read in (parse_description, parse_lenient):
        try:
            found = read(text)
        except DescriptionError as error:
            assert str(error)
            continue
        assert found.coarse or found.detailed
        if read is parse_description:
            assert not any(f"<{field}>" in found.coarse + found.detailed for field in FIELDS)


plain = st.text(st.characters(blacklist_characters="<>|", blacklist_categories=["Cs"]), min_size=1, max_size=40)


@given(fields=st.tuples(plain, plain, plain))
@settings(max_examples=100, deadline=None)
def test_a_well_formed_completion_is_read_as_it_is(fields: tuple[str, str, str]) -> None:
    text = " ".join(f"<{name}>{value}</{name}>" for name, value in zip(FIELDS, fields, strict=True))
    try:
        found = parse_description(text)
    except DescriptionError as error:
        assert "is empty or repeats the prompt's template" in str(error)
        return
    assert (found.thinking, found.coarse, found.detailed) == tuple(" ".join(value.split()) for value in fields)


class Verdict(Answer):
    """A model's answer."""

    mentions: bool


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["id", "mentions", "x"]), inner)
    ),
    max_leaves=8,
)


@given(value=values, before=st.text("ab</think> `\n", max_size=12), after=st.text(max_size=6))
@settings(max_examples=150, deadline=None)
def test_json_answers_are_read_strictly(value: Any, before: str, after: str) -> None:
    found, problem = read_answers(before + json.dumps(value) + after, ["t1", "t2"], Verdict)
    assert set(found) <= {"t1", "t2"}
    entries = value if isinstance(value, list) else [value]
    for key, answer in found.items():
        said = [one for one in entries if isinstance(one, dict) and one.get("id") == key]
        assert [answer.mentions] == [one["mentions"] for one in said if isinstance(one.get("mentions"), bool)]
    assert problem or set(found) == {"t1", "t2"}


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, "[" + "9" * 5000 + "]", '["\\ud800"', "[1e999999"])
def test_json_bombs_are_no_answer(text: str) -> None:
    assert read_answers(text, ["t1"], Verdict)[0] == {}
    with pytest.raises(ValueError):
        find_json(text)


@given(cut=st.integers(0, 200), flipped=st.integers(0, 1600))
@FEW
def test_answers_kept_by_a_killed_stage_are_whole_or_asked_again(tmp_path: Path, cut: int, flipped: int) -> None:
    """Torn in the middle of a character, or with a bit that fell over: what is read back is what was written."""
    path = tmp_path / "answers.jsonl"
    path.unlink(missing_ok=True)
    written = [Verdict(id=f"ü{n}\u2028é", mentions=bool(n % 2)) for n in range(5)]
    file = AnswerFile(path, Verdict)
    for answer in written:
        file.keep(answer)
    data = path.read_bytes()
    for damaged in (data[:cut], flip(data, flipped)):
        path.write_bytes(damaged)
        found = list(AnswerFile(path, Verdict).answers.values())
        assert len(found) <= 5
        assert sum(one not in written for one in found) <= 1  # a flipped bit may make another character, or true false
        again = AnswerFile(path, Verdict)
        assert list(again.answers.values()) == found
    path.write_bytes(data)
    assert list(AnswerFile(path, Verdict).answers.values()) == written


def flip(data: bytes, bit: int) -> bytes:
    """Data with one bit changed."""
    place = bit // 8 % len(data)
    return data[:place] + bytes([data[place] ^ (1 << bit % 8)]) + data[place + 1 :]


@given(data=st.binary(max_size=60))
@FEW
def test_files_of_records_are_read_or_refused_by_name(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "records.json"
    path.write_bytes(data)
    for read in (lambda: load_jsonl(path, Splits), lambda: load_record(path, Catalog)):
        try:
            read()
        except DataError as error:
            assert "records.json" in str(error)


def test_records_survive_every_kind_of_line_end_in_text(tmp_path: Path) -> None:
    records = [Splits(training=("a\u2028b", "c\x85d"), held_out=("e\x1ef",))]
    save_jsonl(tmp_path / "records.jsonl", records)
    assert load_jsonl(tmp_path / "records.jsonl", Splits) == records


@given(where=st.sampled_from(["manifest", "a.txt", "b/c.bin"]), bit=st.integers(0, 100_000), cut=st.booleans())
@FEW
def test_no_damaged_artifact_is_ever_used(tmp_path: Path, where: str, bit: int, cut: bool) -> None:
    """One bit, or the end of the file: either the artifact is not found, or it says exactly what it said."""
    store = ArtifactStore(tmp_path / "store")
    shutil.rmtree(store.root, ignore_errors=True)
    rng = random.Random(1)
    whole = publish_files(store.root, "kind", {"a.txt": "x" * 300, "b.txt": str(rng.random())})
    assert store.find("kind", whole.key) == whole
    file = whole.path / {"manifest": MANIFEST, "a.txt": "a.txt", "b/c.bin": "b.txt"}[where]
    data = file.read_bytes()
    file.write_bytes(data[: bit % len(data)] if cut else flip(data, bit))
    found = store.find("kind", whole.key)
    if where == "manifest":
        assert found in (None, whole)
    else:
        assert found is None


@given(data=st.binary(max_size=200))
@FEW
def test_no_manifest_of_noise_is_believed(tmp_path: Path, data: bytes) -> None:
    folder = tmp_path / "store" / "kind" / "key"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).write_bytes(data)
    assert ArtifactStore(tmp_path / "store").find("kind", "key") is None


@pytest.mark.parametrize("name", ["../../../outside", "/etc/passwd", "a\0b", "", ".", "x" * 5000])
def test_a_manifest_that_names_files_elsewhere_is_not_believed(tmp_path: Path, name: str) -> None:
    ref = publish_files(tmp_path / "store", "kind", {"a.txt": "x"})
    manifest = json.loads((ref.path / MANIFEST).read_text())
    manifest["files"] = {name: [1, "0" * 64]}
    forged = Manifest.model_validate(manifest)
    (ref.path / MANIFEST).write_text(forged.model_copy(update={"seal": forged.expected_seal()}).model_dump_json())
    assert ArtifactStore(tmp_path / "store").find("kind", ref.key) is None


BASE = {
    "source": {"type": "pocket"},
    "training": {"model": {"path": "pocket:base"}, "listener": {"path": "pocket:base"}},
    "evaluation": {"answering": {"path": "pocket:base"}},
}
SECTIONS = sorted(PipelineConfig.model_fields)


@example(section="analyses", key="unknown", value=None)
@given(section=st.sampled_from([*SECTIONS, "nothing"]), key=st.text(max_size=6), value=values)
@settings(max_examples=100, deadline=None)
def test_settings_are_understood_or_refused_in_words(section: str, key: str, value: Any) -> None:
    fields = getattr(PipelineConfig.model_fields.get(section), "annotation", None)
    known = sorted(getattr(fields, "model_fields", {}))
    for name in (key, *known[:4]):
        changed = {**BASE, section: {**BASE.get(section, {}), name: value}}  # type: ignore[dict-item]
        try:
            assert isinstance(validate(changed), PipelineConfig)
        except ConfigError as error:
            assert str(error)
