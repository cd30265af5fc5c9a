"""The client against scripted replicas: retries, failover, chunks, wrong answers."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from fastapi.testclient import TestClient

from lewis_core.errors import ListenerBusyError, ListenerError, ListenerUnavailableError
from lewis_core.listener.client import HttpModel
from lewis_core.listener.schemas import ChoiceItem, GenerateItem, Question, ScoreGame
from lewis_core.listener.service import create_app
from lewis_core.testing import FakeModel

GAME = ScoreGame(candidates=("a.jpg", "b.jpg"), descriptions=("red", "blue"))
BUSY = httpx.Response(503, headers={"Retry-After": "0"}, json={"detail": "full"})


def says_yes(image: str, description: str) -> float:
    return (1 + len(image) + 10 * (len(description) % 9)) / 100


class Script:
    """A transport that plays steps (responses or errors), then hands over to a real application."""

    def __init__(self, *steps: httpx.Response | Exception, model: FakeModel | None = None) -> None:
        self.steps, self.hosts, self.lock = list(steps), [], threading.Lock()
        self.bodies: list[dict] = []
        self.service = TestClient(create_app(lambda: model or FakeModel(says_yes), model_name="fake"))

    def __enter__(self) -> "Script":
        self.service.__enter__()
        while self.service.get("/readyz").status_code != 200:
            time.sleep(0.005)
        return self

    def __exit__(self, *error) -> None:
        self.service.__exit__(*error)

    def handle(self, request: httpx.Request) -> httpx.Response:
        """Play the next step, or ask the service."""
        with self.lock:
            self.hosts.append(request.url.host)
            self.bodies.append(json.loads(request.content))
            step = self.steps.pop(0) if self.steps else None
        if isinstance(step, Exception):
            raise step
        if step is not None:
            return httpx.Response(step.status_code, headers=step.headers, content=step.content)
        answer = self.service.post(request.url.path, content=request.content, headers=dict(request.headers))
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    def model(self, urls="http://one", **options) -> HttpModel:
        """A client of this script."""
        defaults = {"backoff_s": 0.001, "deadline_s": 5.0, "outage_s": 5.0}
        return HttpModel(urls, transport=httpx.MockTransport(self.handle), **defaults | options)


def test_answers_equal_those_of_the_model_whatever_the_chunks():
    model = FakeModel(
        says_yes, lambda image, question: len(question.prompt) % 2, lambda image, prompt: f"{image}{prompt}"
    )
    games = [GAME.model_copy(update={"descriptions": ("d" * (1 + n % 8), "e")}) for n in range(50)]
    items = [
        ChoiceItem(image=f"{n}.jpg", questions=(Question(prompt="q" * (1 + n % 5), choices=("A", "B")),))
        for n in range(50)
    ]
    prompts = [GenerateItem(image=None, prompt=f"p{n}") for n in range(50)]
    with Script(model=model) as script, script.model(max_rows=7) as client:
        assert client.score(games) == model.score(games)
        assert client.choose(items) == model.choose(items)
        assert client.generate(prompts) == model.generate(prompts)
        assert len(script.bodies) == 50 + 8 + 8  # one game of 4 pairs a chunk; 50 items by sevens
        assert client.score([]) == client.choose([]) == client.generate([]) == []


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([BUSY, BUSY], id="busy"),
        pytest.param([httpx.ConnectError("refused")], id="refused"),
        pytest.param([httpx.ReadTimeout("slow"), httpx.RemoteProtocolError("cut")], id="timeout-and-cut"),
    ],
)
def test_what_may_pass_is_tried_again(steps):
    with Script(*steps) as script, script.model() as client:
        [scores] = client.score([GAME])
        assert scores.yes_probability[0][0] == says_yes("a.jpg", "red")
        assert len(script.hosts) == len(steps) + 1


def test_another_replica_is_asked_at_once():
    steps = [httpx.ConnectError("refused")]
    with Script(*steps) as script, script.model(["http://one", "http://two/"], backoff_s=30) as client:
        started = time.monotonic()
        client.score([GAME])
        assert time.monotonic() - started < 5
        assert sorted(script.hosts) == ["one", "two"]


def test_requests_are_spread_over_replicas():
    with Script() as script, script.model(["http://one", "http://two"], max_rows=4) as client:
        client.score([GAME] * 10)
        assert script.hosts.count("one") == script.hosts.count("two") == 5


@pytest.mark.parametrize(
    ("step", "error", "status"),
    [
        pytest.param(BUSY, ListenerBusyError, 503, id="busy"),
        pytest.param(httpx.ConnectError("refused"), ListenerUnavailableError, None, id="nobody"),
    ],
)
def test_an_outage_is_an_error_at_the_deadline_never_a_number(step, error, status):
    with Script(*[step] * 1000) as script:
        client = script.model(deadline_s=0.1, outage_s=0.1)
        with pytest.raises(error) as caught:
            client.score([GAME])
    assert caught.value.status == status
    assert len(script.hosts) > 1


@pytest.mark.parametrize("is_dead_one_busy", [False, True], ids=["slow-then-gone", "one-dead-one-busy"])
def test_patience_counts_from_the_first_failure_and_while_nobody_is_there(monkeypatch, is_dead_one_busy: bool) -> None:
    """An answer that was waited for for long is no outage, and neither is a dead replica beside a busy one."""
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    def handle(request: httpx.Request) -> httpx.Response:
        is_first = clock[0] == 0.0
        clock[0] += 1.0 if is_dead_one_busy else 70.0
        if is_first or (is_dead_one_busy and request.url.host == "a"):
            raise httpx.ReadError("reset")
        if is_dead_one_busy and clock[0] < 300.0:
            return httpx.Response(503, json={"detail": "full"})
        return httpx.Response(200, json={"items": [["a mug"]], "took_s": 0.1})

    monkeypatch.setattr("lewis_core.listener.client.time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    with HttpModel("http://a,http://b", transport=httpx.MockTransport(handle)) as client:
        assert client.generate([GenerateItem(image=None, prompt="say")]) == [["a mug"]]


def test_busy_services_are_given_the_time_they_ask_for():
    busy = httpx.Response(503, headers={"Retry-After": "1"}, json={})
    with Script(busy) as script, script.model(deadline_s=0.5) as client:  # 1 s, times 0.8 at least, is too long
        with pytest.raises(ListenerBusyError):
            client.score([GAME])
        assert len(script.hosts) == 1


@pytest.mark.parametrize("status", [401, 403, 413, 422, 500])
def test_refusals_raise_at_once_with_id_and_reason(status):
    problem = {"title": "t", "status": status, "detail": "because", "request_id": "abc"}
    refusal = httpx.Response(status, headers={"X-Request-Id": "abc"}, json=problem)
    with Script(refusal) as script, script.model() as client:
        with pytest.raises(ListenerError, match=r"because \(request abc\)") as caught:
            client.score([GAME])
        assert type(caught.value) is ListenerError
        assert (caught.value.status, caught.value.request_id) == (status, "abc")
        assert len(script.hosts) == 1


def matrix(rows: int, columns: int) -> list[list[float]]:
    return [[0.5] * columns for _ in range(rows)]


def scores_of(*shape: int) -> dict:
    return dict.fromkeys(("yes_log_odds", "yes_probability", "captured_mass"), matrix(*shape))


@pytest.mark.parametrize(
    ("ask", "answer"),
    [
        pytest.param(lambda m: m.score([GAME]), {"games": [], "took_s": 1}, id="no-game"),
        pytest.param(lambda m: m.score([GAME]), {"games": [scores_of(1, 2)], "took_s": 1}, id="a-description-less"),
        pytest.param(lambda m: m.score([GAME]), {"games": [scores_of(2, 3)], "took_s": 1}, id="a-candidate-more"),
        pytest.param(
            lambda m: m.score([GAME]),
            {"games": [scores_of(2, 2) | {"yes_probability": [[0.5, None]] * 2}], "took_s": 1},
            id="null",
        ),
        pytest.param(lambda m: m.score([GAME]), {"error": "the reference's way"}, id="error-with-200"),
        pytest.param(
            lambda m: m.choose([ChoiceItem(image=None, questions=(Question(prompt="q", choices=("A", "B")),))]),
            {"items": [[{"log_probs": [-1.0], "captured_mass": 0.4}]], "took_s": 1},
            id="a-choice-less",
        ),
        pytest.param(
            lambda m: m.generate([GenerateItem(image=None, prompt="p", num_return=2)]),
            {"items": [["one"]], "took_s": 1},
            id="a-completion-less",
        ),
    ],
)
def test_answers_that_do_not_fit_the_question_are_errors(ask: Callable[[HttpModel], object], answer):
    with Script(httpx.Response(200, json=answer)) as script, script.model() as client, pytest.raises(ListenerError):
        ask(client)


def test_the_token_is_sent_and_readiness_is_read():
    seen = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("authorization"))
        if request.url.host == "dead":
            raise httpx.ConnectError("refused")
        return httpx.Response(503, json={"status": "loading", "model": "m", "detail": ""})

    urls = ["http://dead", "http://loading"]
    with HttpModel(urls, "t0ken", transport=httpx.MockTransport(handle)) as client:
        dead, loading = client.readiness()
    assert dead is None
    assert loading is not None
    assert loading.status == "loading"
    assert seen == ["Bearer t0ken"] * 2


def test_addresses_may_name_the_file_of_their_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret-of-24-characters!\n", encoding="utf-8")
    (tmp_path / "token").chmod(0o600)
    seen: list[tuple[str, str | None]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((str(request.url), request.headers.get("Authorization")))
        return httpx.Response(200, json={"status": "ready", "model": "m", "detail": ""})

    urls = f"http://a:1#{tmp_path / 'token'}, http://b:2/"
    with HttpModel(urls, transport=httpx.MockTransport(answer)) as client:
        client.readiness()
    assert sorted(seen) == [
        ("http://a:1/readyz", "Bearer secret-of-24-characters!"),
        ("http://b:2/readyz", "Bearer secret-of-24-characters!"),
    ]
