"""Which items of which requests share a call, in which order, and who gets an error."""

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lewis_core.errors import ListenerBusyError
from lewis_core.listener.budget import estimate_tokens
from lewis_core.listener.jobs import Job
from lewis_core.listener.schemas import ChoiceItem, GenerateItem, Question, ScoreGame
from lewis_core.listener.worker import ModelWorker

PATIENCE_S = 60


class Recorder:
    """Answers items with themselves, written twice; remembers each call; waits in the first until it is let go."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.entered, self.open = threading.Event(), threading.Event()

    def score(self, items: Sequence[Any]) -> list[Any]:
        """Note the call, wait, answer."""
        self.calls.append("".join(items))
        self.entered.set()
        assert self.open.wait(PATIENCE_S)
        if "!" in self.calls[-1]:
            raise ValueError("!")
        return [item * 2 for item in items]

    choose = generate = score


def job(items: str, kind: Any = "score", tokens: int = 10) -> Job:
    """A job of one item a letter, each of one row and so many tokens."""
    return Job(kind, list(items), [1] * len(items), [tokens] * len(items))


def served(jobs: Sequence[Job], call_tokens: int = 40) -> tuple[list[str], ModelWorker]:
    """Queue jobs while the model is busy with a first one, ``*``; returns the calls that followed."""
    model = Recorder()
    worker = ModelWorker(lambda: model, max_waiting=100, call_tokens=call_tokens)
    worker.start()
    worker.submit(job("*"))
    assert model.entered.wait(PATIENCE_S)
    for one in jobs:
        worker.submit(one)
    model.open.set()
    for one in jobs:
        if not one.future.cancelled():
            one.future.exception(PATIENCE_S)
    worker.stop()
    return model.calls[1:], worker


def answers(one: Job) -> str:
    return "".join(one.future.result(0))


def test_small_requests_ride_together_up_to_the_budget() -> None:
    jobs = [job("ab"), job("c"), job("d"), job("ef")]
    assert served(jobs)[0] == ["abcd", "ef"]
    assert [answers(one) for one in jobs] == ["aabb", "cc", "dd", "eeff"]


def test_a_large_request_gives_way_between_its_slices() -> None:
    jobs = [job("abcdefghij"), job("x"), job("yz")]
    assert served(jobs)[0] == ["abcd", "xyze", "fghi", "j"]
    assert [answers(one) for one in jobs] == ["aabbccddeeffgghhiijj", "xx", "yyzz"]


def test_two_large_requests_take_turns() -> None:
    assert served([job("abcdef"), job("uvwxyz")])[0] == ["abcd", "uvwx", "efyz"]


def test_kinds_are_served_in_the_order_of_their_oldest_request() -> None:
    jobs = [job("ab"), job("g", "generate"), job("c"), job("h", "generate"), job("q", "choose")]
    assert served(jobs)[0] == ["abc", "gh", "q"]


def test_an_item_beyond_the_budget_runs_alone() -> None:
    assert served([job("a", tokens=500), job("b"), job("c", tokens=500)])[0] == ["a", "b", "c"]


def test_an_error_reaches_one_request_only() -> None:
    jobs = [job("a"), job("b"), job("!"), job("c")]
    assert served(jobs)[0] == ["ab!c", "ab", "!c", "!", "c"]
    assert [answers(one) for one in jobs if one is not jobs[2]] == ["aa", "bb", "cc"]
    with pytest.raises(ValueError, match="!"):
        jobs[2].future.result(0)


def test_a_request_that_failed_once_is_over() -> None:
    jobs = [job("abcd!fghijkl"), job("x")]
    assert served(jobs)[0] == ["abcd", "x!fg", "x", "!fg"]
    assert isinstance(jobs[0].future.exception(0), ValueError)
    assert answers(jobs[1]) == "xx"


def test_requests_that_were_given_up_are_dropped() -> None:
    jobs = [job("a"), job("b"), job("c")]
    jobs[0].future.cancel()
    jobs[1].future.cancel()
    assert served(jobs)[0] == ["c"]


def test_what_is_unfinished_when_it_stops_is_refused() -> None:
    model = Recorder()
    worker = ModelWorker(lambda: model, max_waiting=100, call_tokens=20)
    worker.start()
    jobs = [job("abcd"), job("e")]
    worker.submit(jobs[0])
    assert model.entered.wait(PATIENCE_S)
    worker.submit(jobs[1])
    stopping = threading.Thread(target=worker.stop, args=(PATIENCE_S,))
    stopping.start()
    with pytest.raises(ListenerBusyError, match="stopping"):
        jobs[1].future.result(PATIENCE_S)
    model.open.set()
    stopping.join(PATIENCE_S)
    with pytest.raises(ListenerBusyError, match="stopping"):
        jobs[0].future.result(PATIENCE_S)
    with pytest.raises(ListenerBusyError, match="stopping"):
        worker.submit(job("f"))
    assert model.calls == ["ab"]


def test_rows_are_counted_by_call() -> None:
    _, worker = served([job("abcde")])
    assert 'lewis_model_calls_total{kind="score"} 3' in worker.metrics.render()
    assert 'lewis_rows_total{kind="score"} 6' in worker.metrics.render()


@given(
    work=st.lists(
        st.tuples(st.text("abc", min_size=1, max_size=9), st.sampled_from(["score", "choose"]), st.integers(1, 60)),
        max_size=8,
    ),
    budget=st.integers(1, 100),
)
@settings(max_examples=40, deadline=None)
def test_everybody_is_served_in_calls_within_the_budget(work: list[tuple[str, Any, int]], budget: int) -> None:
    jobs = [job(items, kind, tokens) for items, kind, tokens in work]
    calls, _ = served(jobs, budget)
    assert [answers(one) for one in jobs] == ["".join(letter * 2 for letter in items) for items, *_ in work]
    assert sorted("".join(calls)) == sorted("".join(items for items, *_ in work))
    largest = max((tokens for *_, tokens in work), default=0)
    least = min((tokens for *_, tokens in work), default=0)
    for call in calls:
        assert len(call) == 1 or least * len(call) <= max(budget, largest)
    turns = sum(-(-len(items) // max(1, budget // tokens)) for items, _, tokens in work)
    assert len(calls) <= turns  # at worst, each request has the calls that it would need alone


def test_a_job_without_items_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one item"):
        job("")


def test_tokens_are_estimated_by_hand() -> None:
    """A third of a token a character, 24 for the words around a text; images once, texts for each image."""
    game = ScoreGame(candidates=("a.jpg", "b.jpg", "c.jpg"), descriptions=("x" * 30, "y" * 31))
    assert estimate_tokens(game, 256) == 3 * (256 + (24 + 10) + (24 + 11))
    questions = (Question(prompt="q" * 9, choices=("A", "B")),) * 2
    assert estimate_tokens(ChoiceItem(image="a.jpg", questions=questions), 256) == 256 + 2 * (24 + 3)
    assert estimate_tokens(ChoiceItem(image=None, questions=questions), 256) == 2 * (24 + 3)
    item = GenerateItem(image="a.jpg", prompt="p" * 6, num_return=4, max_new_tokens=50, temperature=1)
    assert estimate_tokens(item, 256) == 256 + (24 + 2) + 4 * 50
