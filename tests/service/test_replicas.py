"""The circuit breaker: who is asked next, with a clock of our own."""

import threading

import httpx
import pytest

from lewis_core.listener.client import HttpModel
from lewis_core.listener.replicas import FAILURES, MAX_REST_S, REST_S, Replicas
from lewis_core.listener.schemas import ScoreGame
from lewis_core.testing import FakeModel
from tests.service.helpers import listening


class Clock:
    """Shows what it is told."""

    now = 100.0

    def __call__(self) -> float:
        """The time, in seconds."""
        return self.now


def test_replicas_take_turns() -> None:
    replicas = Replicas(["a", "b", "c"])
    assert sorted(replicas.next() for _ in range(3)) == ["a", "b", "c"]
    assert {replicas.next(avoid=["a", "b"]) for _ in range(3)} == {"c"}
    assert sorted({replicas.next(avoid=["a", "b", "c"]) for _ in range(3)}) == ["a", "b", "c"]


def test_one_that_keeps_failing_has_a_rest_and_is_tried_once() -> None:
    clock = Clock()
    replicas = Replicas(["a", "b"], clock)
    for _ in range(FAILURES - 1):
        replicas.failed("a")
    assert {replicas.next() for _ in range(2)} == {"a", "b"}
    replicas.failed("a")
    assert replicas.resting() == ["a"]
    assert {replicas.next() for _ in range(6)} == {"b"}
    clock.now += REST_S
    assert [replicas.next() for _ in range(6)].count("a") == 1  # one request tries it
    replicas.failed("a")
    clock.now += 1.5 * REST_S
    assert {replicas.next() for _ in range(6)} == {"b"}  # the second rest is twice as long
    clock.now += 0.5 * REST_S
    assert [replicas.next() for _ in range(6)].count("a") == 1
    replicas.succeeded("a")
    assert {replicas.next() for _ in range(2)} == {"a", "b"}
    assert replicas.resting() == []


def test_rests_are_bounded_and_all_resting_is_no_reason_to_give_up() -> None:
    clock = Clock()
    replicas = Replicas(["a", "b"], clock)
    for _ in range(40):
        replicas.failed("a")
    for _ in range(FAILURES):
        replicas.failed("b")
    assert replicas.next() == "b"  # its rest ends first
    clock.now += MAX_REST_S
    assert {replicas.next() for _ in range(2)} == {"a", "b"}


def test_a_dead_replica_costs_a_few_attempts_and_a_revived_one_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lewis_core.listener.replicas.REST_S", 0.05)
    asked: list[str] = []
    dead, lock = {"two"}, threading.Lock()
    with listening(lambda: FakeModel(lambda image, text: 0.25)) as server:

        def handle(request: httpx.Request) -> httpx.Response:
            with lock:
                asked.append(request.url.host)
            if request.url.host in dead:
                raise httpx.ConnectError("refused")
            url = f"http://127.0.0.1:{server.port}{request.url.path}"
            answer = httpx.post(url, content=request.content, headers={"Content-Type": "application/json"})
            return httpx.Response(answer.status_code, content=answer.content)

        game = ScoreGame(candidates=("a.jpg",), descriptions=("red",))
        urls = ["http://one", "http://two", "http://three"]
        with HttpModel(urls, max_rows=1, connections=1, transport=httpx.MockTransport(handle)) as client:
            for _ in range(10):
                assert [scores.yes_probability for scores in client.score([game] * 3)] == [((0.25,),)] * 3
            while_dead = asked.count("two")
            assert FAILURES <= while_dead < 15
            dead.clear()
            for _ in range(500):
                client.score([game] * 3)
                if asked.count("two") > while_dead + 3:
                    break
            assert asked.count("two") > while_dead + 3
