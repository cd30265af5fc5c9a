"""What breaks, breaks alone: memory, a photo, a call, the thread, the GPU. Models are exchanged; the end is orderly."""

import threading
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from lewis_core.errors import ImageError, ModelError
from lewis_core.listener.limits import ServiceLimits
from lewis_core.listener.worker import MAX_CRASHES, is_fatal
from lewis_core.testing import FakeModel
from tests.service.helpers import GAME, Asker, Gate, listening, serving, wait_for

BODY = {"games": [GAME]}


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


class AcceleratorError(RuntimeError):
    """Named like torch's."""


class Small(FakeModel):
    """Has memory for two games at a time."""

    def __init__(self) -> None:
        super().__init__(lambda image, text: (1 + len(text)) / 100)
        self.sizes: list[int] = []

    def score(self, games: Sequence[Any]) -> Any:
        """Answer, or run out of memory."""
        self.sizes.append(len(games))
        if len(games) > 2:
            raise OutOfMemoryError("CUDA out of memory")
        return super().score(games)


def test_out_of_memory_halves_the_call_and_loses_nothing() -> None:
    model = Small()
    games = [GAME | {"descriptions": ["d" * n]} for n in range(1, 8)]
    with serving(lambda: model) as client:
        answer = client.post("/v1/score", json={"games": games})
    assert answer.status_code == 200
    found = [game["yes_probability"][0][0] for game in answer.json()["games"]]
    assert found == [(1 + n) / 100 for n in range(1, 8)]
    assert model.sizes == [7, 3, 1, 2, 4, 2, 2]


def test_one_item_beyond_memory_is_that_request_s_error() -> None:
    class Tiny(FakeModel):
        def score(self, games: Sequence[Any]) -> Any:
            if any("x" in game.descriptions[0] for game in games):
                raise OutOfMemoryError("CUDA out of memory")
            return super().score(games)

    with serving(Tiny) as client:
        assert client.post("/v1/score", json={"games": [GAME, GAME | {"descriptions": ["x"]}]}).status_code == 500
        assert client.post("/v1/score", json=BODY).status_code == 200
        assert client.get("/readyz").status_code == 200


class Poisoned(Gate):
    """Cannot use one photo."""

    def score(self, games: Sequence[Any]) -> Any:
        """Answer, or refuse."""
        found = super().score(games)
        if any("poison.jpg" in game.candidates for game in games):
            raise ImageError("poison.jpg", "truncated")
        return found


def test_a_poisoned_photo_fails_alone_among_many() -> None:
    model = Poisoned()
    with serving(lambda: model) as client:
        first = Asker(lambda: client.post("/v1/score", json=BODY))
        assert model.entered.wait(60)
        names = [f"{n}.jpg" for n in range(9)] + ["poison.jpg"]
        bodies = [{"games": [GAME | {"candidates": [name]}]} for name in names]
        asked = [Asker(lambda body=body: client.post("/v1/score", json=body)) for body in bodies]
        wait_for(lambda: "lewis_queue_length 10" in client.get("/metrics").text)
        model.open.set()
        statuses = [one.wait().status_code for one in asked]
        assert first.wait().status_code == 200
    assert statuses == [200] * 9 + [422]


class Breaks(FakeModel):
    """Ends the thread, as nothing in Python should."""

    def score(self, games: Sequence[Any]) -> Any:
        """Break on one photo."""
        if any("break.jpg" in game.candidates for game in games):
            raise SystemExit("a bug in native code")
        return super().score(games)


def test_a_broken_thread_goes_on_and_gives_up_when_it_breaks_too_often(caplog: pytest.LogCaptureFixture) -> None:
    ended: list[BaseException] = []
    breaking = {"games": [GAME | {"candidates": ["break.jpg"]}]}
    with serving(Breaks, on_failure=ended.append) as client:
        for _ in range(MAX_CRASHES):
            assert client.post("/v1/score", json=breaking).status_code == 500
            assert client.post("/v1/score", json=BODY).status_code == 200
        assert ended == []
        assert client.post("/v1/score", json=breaking).status_code == 500
        state = wait_for(lambda: (found := client.get("/readyz")).status_code == 500 and found)
        assert client.post("/v1/score", json=BODY).status_code == 500
        assert client.get("/healthz").status_code == 200
    assert "a bug in native code" in state.json()["detail"]
    assert [type(error) for error in ended] == [SystemExit]
    assert "the model's thread broke" in caplog.text


def test_a_gpu_that_broke_is_given_up_at_once() -> None:
    class Broken(Gate):
        def score(self, games: Sequence[Any]) -> Any:
            super().score(games)
            raise AcceleratorError("CUDA error: an illegal memory access was encountered")

    model, ended = Broken(), []
    with serving(lambda: model, on_failure=ended.append) as client:
        asked = [Asker(lambda: client.post("/v1/score", json=BODY))]
        assert model.entered.wait(60)
        asked += [Asker(lambda: client.post("/v1/score", json=BODY)) for _ in range(3)]
        wait_for(lambda: "lewis_queue_length 3" in client.get("/metrics").text)
        model.open.set()
        statuses = [one.wait().status_code for one in asked]
        wait_for(lambda: client.get("/readyz").status_code == 500)
    assert statuses == [500, 503, 503, 503]  # those that waited may ask another replica
    assert model.calls == [1]
    assert len(ended) == 1


def test_what_breaks_a_gpu_for_good() -> None:
    assert is_fatal(AcceleratorError("device-side assert"))
    assert is_fatal(RuntimeError("CUDA error: unspecified launch failure"))
    assert not is_fatal(OutOfMemoryError("CUDA error: out of memory"))
    assert not is_fatal(ValueError("x"))


def test_a_call_that_never_ends_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lewis_core.listener.service.WATCH_S", 0.02)
    model, ended = Gate(), []
    with serving(lambda: model, on_failure=ended.append, limits=ServiceLimits(max_call_s=0.1)) as client:
        answer = client.post("/v1/score", json=BODY)
        state = client.get("/readyz")
        model.open.set()
    assert answer.status_code == 500
    assert (state.status_code, state.json()["status"]) == (500, "failed")
    assert [type(error) for error in ended] == [TimeoutError]


def yes(value: float) -> FakeModel:
    return FakeModel(lambda image, text: value)


def test_the_model_is_exchanged_under_load_and_nothing_is_lost() -> None:
    """Every request is answered, by one model: never partly by the old one and partly by the new one."""
    answers: list[httpx.Response] = []
    stop = threading.Event()
    with listening(lambda: yes(0.25), limits=ServiceLimits(call_tokens=2000)) as server:
        url = f"http://127.0.0.1:{server.port}"

        def ask() -> None:
            with httpx.Client(base_url=url, timeout=60) as client:
                while not stop.is_set():
                    answers.append(client.post("/v1/score", json={"games": [GAME] * 5}))  # served in slices

        asked = [Asker(ask) for _ in range(4)]
        worker = server.app.state.worker
        for generation in range(2, 6):
            wait_for(lambda seen=len(answers): len(answers) > seen + 8)
            worker.reload(lambda generation=generation: yes(generation / 10))
            wait_for(lambda generation=generation: worker.generation == generation)
        wait_for(lambda seen=len(answers): len(answers) > seen + 8)
        stop.set()
        for one in asked:
            one.wait()
        assert httpx.get(url + "/readyz").json()["generation"] == 5
    assert {answer.status_code for answer in answers} == {200}
    by_answer = [{p for game in a.json()["games"] for row in game["yes_probability"] for p in row} for a in answers]
    assert all(len(values) == 1 for values in by_answer), "one answer came from two models"
    assert set.union(*by_answer) == {0.25, 0.2, 0.3, 0.4, 0.5}


def test_what_was_begun_is_begun_again_after_an_exchange() -> None:
    model = Gate(lambda image, text: 0.25)
    with serving(lambda: model, limits=ServiceLimits(call_tokens=1)) as client:
        asked = Asker(lambda: client.post("/v1/score", json={"games": [GAME] * 3}))
        assert model.entered.wait(60)  # in the first of three calls
        client.app.state.worker.reload(lambda: yes(0.75))
        wait_for(lambda: client.app.state.worker._next_model is not None)
        model.open.set()
        games = asked.wait().json()["games"]
    assert {p for game in games for row in game["yes_probability"] for p in row} == {0.75}
    assert model.calls == [1]


def test_an_exchange_that_fails_leaves_the_old_model() -> None:
    def broken() -> FakeModel:
        raise ModelError("no weights there")

    with serving(lambda: yes(0.25)) as client:
        client.app.state.worker.reload(broken)
        state = wait_for(lambda: (found := client.get("/readyz").json())["detail"] and found)
        assert "no weights there" in state["detail"]
        assert (state["status"], state["generation"]) == ("ready", 1)
        assert client.post("/v1/score", json=BODY).json()["games"][0]["yes_probability"][0][0] == 0.25
        client.app.state.worker.reload(lambda: yes(0.75))
        wait_for(lambda: client.get("/readyz").json()["generation"] == 2)
        assert client.get("/readyz").json()["detail"] == ""


def test_draining_answers_what_is_there_and_refuses_the_rest() -> None:
    model = Gate()
    with listening(lambda: model) as server:
        url = f"http://127.0.0.1:{server.port}"
        inside = [Asker(lambda: httpx.post(url + "/v1/score", json=BODY, timeout=60))]
        assert model.entered.wait(60)
        inside += [Asker(lambda: httpx.post(url + "/v1/score", json=BODY, timeout=60)) for _ in range(3)]
        wait_for(lambda: "lewis_queue_length 3" in httpx.get(url + "/metrics").text)
        server.handle_exit(15, None)
        refused, ready, alive = httpx.post(url + "/v1/score", json=BODY), httpx.get(url + "/readyz"), httpx.get(url)
        assert (refused.status_code, "stopping" in refused.text, "retry-after" in refused.headers) == (503, True, True)
        assert (ready.status_code, ready.json()["status"]) == (503, "stopping")
        assert alive.status_code == 404  # it still listens
        model.open.set()
        assert [one.wait().status_code for one in inside] == [200] * 4
        wait_for(lambda: server.should_exit)


def test_draining_has_its_time() -> None:
    model = Gate()
    with listening(lambda: model, drain_s=0.2) as server:
        asked = Asker(lambda: httpx.post(f"http://127.0.0.1:{server.port}/v1/score", json=BODY, timeout=60).status_code)
        assert model.entered.wait(60)
        server.handle_exit(15, None)
        wait_for(lambda: server.should_exit)
        model.open.set()
        assert asked.wait() in (200, 503)


def test_a_second_signal_ends_it_at_once() -> None:
    model = Gate()
    with listening(lambda: model, drain_s=999) as server:
        asked = Asker(lambda: httpx.post(f"http://127.0.0.1:{server.port}/v1/score", json=BODY, timeout=60))
        assert model.entered.wait(60)
        server.handle_exit(15, None)
        assert not server.should_exit
        server.handle_exit(15, None)
        assert server.should_exit
        model.open.set()
        asked.wait()
