"""JSON from a language model: read strictly, asked for again, nothing lost."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lewis_core.config.processing import JudgeConfig
from lewis_core.descriptions.answers import AnswerFile, ask_for_json, find_json, read_answers
from lewis_core.descriptions.judge import Judgement
from lewis_core.listener.schemas import MAX_TEXT
from lewis_core.prompts.processing import WHAT_BY_MODE, judge_prompt, refine_prompt
from lewis_core.testing import FakeModel

TEXTS = {"secret/one": "It is red.", "secret/two": "It is on a table.", "secret/three": "It sleeps."}


def line(key: str, state: object = False, location: object = False) -> str:
    return json.dumps({"id": key, "has_state": state, "has_location": location})


def test_json_is_found_after_thinking_and_between_words() -> None:
    assert find_json('<think>maybe [1]</think> Here:\n```json\n[{"id": "t1"}]\n```\nDone [x]') == [{"id": "t1"}]
    assert find_json('{"id": "t1"} {"id": "t2"}') == {"id": "t1"}
    for text, message in (("no", "found no JSON in 'no'"), ('[{"id": "t1"', "no complete JSON"), ("<think>[]", None)):
        if message is None:
            assert find_json(text) == []
        else:
            with pytest.raises(ValueError, match=message):
                find_json(text)


def test_answers_are_matched_by_id_and_not_by_position() -> None:
    found, problem = read_answers(f"[{line('t2', True)}, {line('t1')}]", ["t1", "t2"], Judgement)
    assert (found["t1"].has_state, found["t2"].has_state, problem) == (False, True, "")


@pytest.mark.parametrize(
    ("completion", "known", "message"),
    [
        (f"[{line('t1')}]", {"t1"}, "no answer about t2"),
        (f"[{line('t1')}, {line('t1', True)}, {line('t2')}]", {"t2"}, "'t1' is answered twice"),
        (f"[{line('t1')}, {line('t2')}, {line('t9')}]", {"t1", "t2"}, "nobody asked about 't9'"),
        (f"[{line('t1', 'yes')}, {line('t2', 1)}]", set(), "has_state: Input should be a valid boolean"),
        ("[1, null]", set(), "Input should be a valid dictionary"),
        ('[{"id": "t1", "has_state": true}]', set(), "has_location: Field required"),
    ],
)
def test_what_is_not_as_promised_is_left_out_and_said(completion: str, known: set[str], message: str) -> None:
    found, problem = read_answers(completion, ["t1", "t2"], Judgement)
    assert set(found) == known
    assert message in problem


@given(st.text(max_size=60))
def test_no_completion_breaks_the_reader(completion: str) -> None:
    found, problem = read_answers(completion, ["t1"], Judgement)
    assert problem or found


def ask(
    path: Path, writes: Callable[[str], str], **settings: int
) -> tuple[AnswerFile[Judgement], dict[str, str], FakeModel]:
    model = FakeModel(writes=lambda image, prompt: writes(prompt))
    kept = AnswerFile(path / "kept.jsonl", Judgement)
    failures = ask_for_json(model, TEXTS, judge_prompt, kept, Judgement, JudgeConfig(**settings), batch_size=2)
    return kept, {failure.id: f"{failure.attempts}: {failure.reason}" for failure in failures}, model


def items(prompt: str) -> dict[str, str]:
    """The items that a prompt asks about."""
    match = re.search(r"^Input:\n(.*)$", prompt, re.MULTILINE)
    assert match
    return {item["id"]: item["text"] for item in json.loads(match.group(1))}


def answer_all(prompt: str) -> str:
    return "[" + ", ".join(line(key, "sleeps" in text, "table" in text) for key, text in items(prompt).items()) + "]"


def test_every_text_is_answered_under_an_id_of_its_own(tmp_path: Path) -> None:
    kept, failures, model = ask(tmp_path, answer_all, items_per_prompt=2)
    assert not failures
    assert {key: (a.has_state, a.has_location) for key, a in kept.answers.items()} == {
        "secret/one": (False, False), "secret/two": (False, True), "secret/three": (True, False),
    }  # fmt: skip
    assert [list(items(prompt)) for prompt in model.asked] == [["t1", "t2"], ["t3"]]
    assert not any("secret" in prompt for prompt in model.asked)


def test_what_fails_is_asked_again_alone_with_a_reminder_and_then_listed(tmp_path: Path) -> None:
    def stubborn(prompt: str) -> str:
        return "I would rather not." if "t2" in items(prompt) else answer_all(prompt)

    kept, failures, model = ask(tmp_path, stubborn, items_per_prompt=2, attempts=3)
    assert set(kept.answers) == {"secret/one", "secret/three"}
    assert failures == {"secret/two": "3: found no JSON in 'I would rather not.'"}
    asked = [(list(items(prompt)), "no code fence" in prompt) for prompt in model.asked]
    assert asked == [
        (["t1", "t2"], False), (["t3"], False), (["t1"], True), (["t2"], True), (["t2"], True),
    ]  # fmt: skip


def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    def killed(prompt: str) -> str:
        if "t3" in items(prompt):
            raise KeyboardInterrupt
        return answer_all(prompt)

    with pytest.raises(KeyboardInterrupt):
        ask(tmp_path, killed, items_per_prompt=1)
    file = tmp_path / "kept.jsonl"
    with file.open("a") as torn:
        torn.write('{"id": "secret/thr')
    kept, failures, model = ask(tmp_path, answer_all, items_per_prompt=1)
    assert not failures
    assert [list(items(prompt)) for prompt in model.asked] == [["t3"]]
    assert list(AnswerFile(file, Judgement).answers) == list(kept.answers) == list(TEXTS)


def test_a_text_that_no_prompt_holds_fails_by_itself(tmp_path: Path) -> None:
    model = FakeModel(writes=lambda image, prompt: answer_all(prompt))
    kept = AnswerFile(tmp_path / "kept.jsonl", Judgement)
    texts = {"long": "x" * (MAX_TEXT + 1), "a": "y " * 4000, "b": "z " * 4000, "c": "w " * 4000}
    failures = ask_for_json(model, texts, judge_prompt, kept, Judgement, JudgeConfig(items_per_prompt=16))
    assert [failure.id for failure in failures] == ["long"]
    assert set(kept.answers) == {"a", "b", "c"}
    assert [len(items(prompt)) for prompt in model.asked] == [2, 1]  # no prompt is longer than a model is sent


def test_the_prompts_examples_are_valid_answers() -> None:
    for prompt in (judge_prompt({"t1": "{}"}), *(refine_prompt({"t1": "{}"}, mode) for mode in WHAT_BY_MODE)):
        match = re.search(r"^Example answer:\n(.*)$", prompt, re.MULTILINE)
        assert match
        assert [entry["id"] for entry in json.loads(match.group(1))] == ["t1", "t2"]
        assert items(prompt) == {"t1": "{}"}
