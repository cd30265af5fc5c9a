"""A killed evaluation goes on item by item; a bad item fails alone; an outage is no answer."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lewis_core.config.evaluation import IdentificationConfig, RecognitionConfig, StatisticsConfig
from lewis_core.errors import EvaluationError, ListenerError, ListenerUnavailableError
from lewis_core.evaluation import blocks, game, identification, recognition
from lewis_core.evaluation.blocks import Refused, put_in_blocks
from lewis_core.evaluation.io import build_subjects
from lewis_core.evaluation.journal import JOURNAL, RememberingModel
from lewis_core.listener.schemas import ChoiceItem, GenerateItem, Question, ScoreGame
from lewis_core.prompts import prompt_set
from lewis_core.reporting import NullReporter
from lewis_core.testing import FakeModel, make_catalog, make_database

CATALOG = make_catalog({"mug": 5, "bag": 5}, num_test=2)
SUBJECTS = build_subjects(make_database(CATALOG, {c.id: f"It is {c.id[-2:]}." for c in CATALOG.concepts}), CATALOG)
CHILD = """
import sys, time
from pathlib import Path
import tests.core.test_evaluation_resume as here
from lewis_core.evaluation import blocks, recognition
from lewis_core.evaluation.journal import RememberingModel
blocks.FIRST_BLOCK = blocks.LARGEST_BLOCK = 4
folder, pause_s = Path(sys.argv[1]), float(sys.argv[2])
class Slow(here.FakeModel):
    def choose(self, items):
        time.sleep(pause_s)
        answers = super().choose(items)
        with (folder / "asked.txt").open("a") as file:
            file.writelines(f"{item.image} {q.prompt}\\n" for item in items for q in item.questions)
        return answers
with RememberingModel(Slow(), folder) as model:
    found = recognition.recognise(here.SUBJECTS, model, here.prompt_set("concise"), here.RecognitionConfig())
(folder / "done.jsonl").write_text("".join(p.model_dump_json() + "\\n" for p in found))
"""


def start(folder: Path, pause_s: float) -> "subprocess.Popen[bytes]":
    root = Path(__file__).parents[2]
    return subprocess.Popen([sys.executable, "-c", CHILD, str(folder), str(pause_s)], cwd=root)


def test_after_kill_9_only_what_is_missing_is_asked(tmp_path: Path) -> None:
    asked, journal = tmp_path / "asked.txt", tmp_path / JOURNAL
    killed = start(tmp_path, 0.2)
    deadline = time.monotonic() + 60
    while not (journal.is_file() and journal.read_bytes().count(b"\n") >= 12) and time.monotonic() < deadline:
        assert killed.poll() is None
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    kept = journal.read_bytes().count(b"\n")
    first = asked.read_text().splitlines()
    assert 12 <= kept <= len(first) and not (tmp_path / "done.jsonl").exists()
    with journal.open("a") as file:
        file.write('["torn')  # as a kill in the middle of a write leaves it
    assert start(tmp_path, 0.0).wait(300) == 0
    second = asked.read_text().splitlines()[len(first) :]
    assert not set(second) & set(first[:kept]), "an answered item was asked again"
    fresh = FakeModel()
    straight = recognition.recognise(SUBJECTS, fresh, prompt_set("concise"), RecognitionConfig())
    assert len(second) == len(fresh.asked) - kept
    assert [json.loads(line) for line in (tmp_path / "done.jsonl").read_text().splitlines()] == [
        prediction.model_dump(mode="json") for prediction in straight
    ]


def test_all_three_kinds_of_questions_are_remembered_and_damage_is_asked_again(tmp_path: Path) -> None:
    question = Question(prompt="q", choices=("A", "B"))
    items = [ChoiceItem(image=None, questions=(question, Question(prompt="r", choices=("A", "B"))))]
    games, texts = [ScoreGame(candidates=("a", "b"), descriptions=("x",))], [GenerateItem(image="i", prompt="p")]

    def ask() -> tuple[FakeModel, object]:
        inner = FakeModel(writes=lambda image, prompt: f"about {image}")
        with RememberingModel(inner, tmp_path) as model:
            return inner, (model.choose(items), model.score(games), model.generate(texts))

    first, told = ask()
    again, recalled = ask()
    assert (first.asked, again.asked) == (["q", "r", "x", "p"], [])
    assert told == recalled
    journal = tmp_path / JOURNAL
    lines = journal.read_text().splitlines()
    lines[0], lines[2] = "{ no JSON", json.dumps(["key", {"yes_log_odds": "no matrix"}])
    journal.write_text("\n".join(lines) + "\n")
    third, repaired = ask()
    assert third.asked == ["q", "x"]
    assert repaired == told


def test_a_photo_that_cannot_be_read_fails_alone_and_is_counted() -> None:
    bad = SUBJECTS[0].photos[0].path
    model = FakeModel(unreadable={bad})
    found = recognition.recognise(SUBJECTS, model, prompt_set("concise"), RecognitionConfig(controls=False))
    failed = [p for p in found if p.error is not None]
    assert failed == [p for p in found if p.image == bad]
    assert all("not answered: " in (p.error or "") and "cannot be read" in (p.error or "") for p in failed)
    assert all(p.answered is not None for p in found if p.image != bad)
    notes = {m.name: m.note for m in recognition.aggregate(found, StatisticsConfig(resamples=100))}
    assert f"{len(failed)} pairs could not be asked and count as wrong" in notes["f1"]


def test_in_games_and_rankings_too() -> None:
    bad = SUBJECTS[0].photos[0].path
    ranked = identification.rank(SUBJECTS, FakeModel(unreadable={bad}), IdentificationConfig(), NullReporter())
    assert [p.image for p in ranked if p.error] == [bad]
    rounds = [
        game.Round(subject, (subject.photos[0], SUBJECTS[(index + 1) % 10].photos[1]), ("a", "b"), 0)
        for index, subject in enumerate(SUBJECTS)
    ]
    played = game.play_rounds(rounds, FakeModel(unreadable={bad}))
    assert [p.concept for p in played if p.error] == [SUBJECTS[0].id]
    assert not played[0].is_correct


def test_too_many_refusals_and_outages_end_the_evaluation() -> None:
    def refuse(units):
        raise ListenerError("http://x answered 422: broken", status=422)

    def lost(units):
        raise ListenerUnavailableError("nobody answers")

    def locked(units):
        raise ListenerError("http://x answered 401: this service needs a bearer token", status=401)

    with pytest.raises(EvaluationError, match=r"2 of 2 items could not be answered.*broken"):
        list(put_in_blocks(refuse, list(range(15)), [1] * 15))
    with pytest.raises(EvaluationError, match="1 of 1 items"):
        list(put_in_blocks(refuse, [1], [1]))
    with pytest.raises(ListenerUnavailableError):
        list(put_in_blocks(lost, [1, 2], [1, 1]))
    with pytest.raises(ListenerError, match="bearer"):
        list(put_in_blocks(locked, [1, 2], [1, 1]))


def test_one_bad_item_costs_few_calls_and_only_itself() -> None:
    calls = []

    def ask(units: list[int]) -> list[int]:
        calls.append(len(units))
        if 77 in units:
            raise ListenerError("http://x answered 422: 77", status=422)
        return [10 * unit for unit in units]

    replies = list(put_in_blocks(ask, list(range(200)), [1] * 200))
    assert replies[77] == Refused("http://x answered 422: 77")
    assert [reply for index, reply in enumerate(replies) if index != 77] == [10 * n for n in range(200) if n != 77]
    assert len(calls) <= 4 + 2 * 6  # blocks of 16, 32, 64 and 88, of which the third is halved down to one


def test_blocks_grow_while_they_are_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def ask(units: list[int]) -> list[int]:
        sizes.append(len(units))
        return units

    assert list(put_in_blocks(ask, list(range(2000)), [1] * 2000)) == list(range(2000))
    assert sizes[:7] == [16, 32, 64, 128, 256, 512, 992]
    sizes.clear()
    clock = iter(range(0, 10_000, 5))  # every block seems to take five seconds
    monkeypatch.setattr(blocks.time, "monotonic", lambda: next(clock))
    assert list(put_in_blocks(ask, list(range(2000)), [1] * 2000)) == list(range(2000))
    assert set(sizes[:-1]) == {16}
    sizes.clear()
    list(put_in_blocks(ask, [1, 2], [1000, 1000]))
    assert sizes == [1, 1]  # an item larger than a block is asked alone
