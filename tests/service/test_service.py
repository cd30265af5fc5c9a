"""The service's contract, with a fake model: statuses, error bodies, limits, packing."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest
from fastapi.testclient import TestClient

from lewis_core.errors import ImageAccessError, ImageError, ModelError
from lewis_core.listener.access import Access
from lewis_core.listener.limits import ServiceLimits
from lewis_core.listener.schemas import CacheStatistics
from lewis_core.listener.service import create_app
from lewis_core.testing import FakeModel

GAME = {"candidates": ["a.jpg", "b.jpg"], "descriptions": ["red", "blue", "green"]}


def says_yes(image: str, description: str) -> float:
    """A probability that is different for each pair: lengths make it."""
    return (1 + len(image) % 7 + 10 * (len(description) % 7)) / 100


@contextmanager
def serving(load: Callable[[], object], ready: int = 200, **options) -> Iterator[TestClient]:
    with TestClient(create_app(load, model_name="fake", **options), raise_server_exceptions=False) as client:
        deadline = time.monotonic() + 120
        while client.get("/readyz").status_code != ready:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        yield client


class Raises(FakeModel):
    """Raises an error on the images that are named after it."""

    ERRORS = {
        "out.jpg": ImageAccessError("out.jpg", "outside"),
        "bad.jpg": ImageError("bad.jpg", "truncated"),
        "model.jpg": ModelError("does not fit"),
        "crash.jpg": RuntimeError("a secret of the process"),
    }

    def score(self, games):
        """Raise, or answer."""
        for game in games:
            for image in game.candidates:
                if image in self.ERRORS:
                    raise self.ERRORS[image]
        return super().score(games)


class Gate(FakeModel):
    """Waits for a signal before each answer, and remembers what was asked together."""

    def __init__(self) -> None:
        super().__init__(says_yes)
        self.open, self.entered, self.calls = threading.Event(), threading.Event(), []

    def score(self, games):
        """Note the call, and wait."""
        self.calls.append(len(games))
        self.entered.set()
        assert self.open.wait(120)
        return super().score(games)


def test_score_answers_descriptions_by_candidates():
    with serving(lambda: FakeModel(lambda image, text: {"a.jpg": 0.9, "b.jpg": 0.2}[image])) as client:
        response = client.post("/v1/score", json={"games": [GAME]})
    assert response.status_code == 200
    [game] = response.json()["games"]
    assert game["yes_probability"] == [[0.9, 0.2]] * 3
    assert game["yes_log_odds"][0] == pytest.approx([2.1972246, -1.3862944])  # ln 9, -ln 4
    assert len(response.headers["x-request-id"]) == 16


def test_choose_and_generate_answer_in_order():
    model = FakeModel(answers=lambda image, question: len(question.prompt) - 1, writes=lambda image, prompt: prompt * 2)
    with serving(lambda: model) as client:
        questions = [{"prompt": "x" * n, "choices": ["A", "B", "C"]} for n in (3, 1, 2)]
        chosen = client.post("/v1/choose", json={"items": [{"image": None, "questions": questions}]}).json()
        items = [{"image": "a.jpg", "prompt": "p", "num_return": 2}, {"image": None, "prompt": "q"}]
        written = client.post("/v1/generate", json={"items": items}).json()
    best = [max(range(3), key=answer["log_probs"].__getitem__) for answer in chosen["items"][0]]
    assert best == [2, 0, 1]
    assert written["items"] == [["pp", "pp"], ["qq"]]


def test_reference_endpoints_answer_with_the_reference_formulas():
    # two answers, probabilities 0.9 and 0.1: yes 0.9 for a.jpg, 0.1 for b.jpg; share 0.9 / (0.9 + 0.1) = 0.9
    model = FakeModel(answers=lambda image, question: 0 if image == "a.jpg" else 1)
    body = {"candidate_paths": ["b.jpg", "a.jpg"], "question": "Does it fit?", "topk": 1}
    with serving(lambda: model) as client:
        single = client.post("/score", json=body).json()
        batch = client.post("/batch_score", json={"batch": [body, body | {"candidate_paths": ["b.jpg"]}]}).json()
        empty = client.post("/score", json=body | {"candidate_paths": []})
    assert single["yes_probabilities"] == pytest.approx([0.1, 0.9])
    assert (single["predicted_index"], single["reward_score"]) == (1, pytest.approx(0.9))
    assert batch["results"][0] == {key: single[key] for key in batch["results"][0]}
    assert batch["results"][1]["reward_score"] == pytest.approx(0.5)  # share 1, halved: 0.1 < 0.3
    assert empty.status_code == 422
    assert "took" in single
    assert "took" in batch


@pytest.mark.parametrize(
    ("image", "status", "says"),
    [
        pytest.param("out.jpg", 403, "outside", id="outside-the-root"),
        pytest.param("bad.jpg", 422, "bad.jpg: truncated", id="unreadable-image"),
        pytest.param("model.jpg", 422, "does not fit", id="item-that-cannot-be-run"),
        pytest.param("crash.jpg", 500, "the service failed", id="crash"),
    ],
)
def test_errors_are_problems_and_never_200(image, status, says, caplog):
    with serving(Raises) as client:
        response = client.post("/v1/score", json={"games": [GAME | {"candidates": [image]}]})
        assert client.post("/v1/score", json={"games": [GAME]}).status_code == 200  # the service lives on
    problem = response.json()
    assert response.status_code == problem["status"] == status
    assert response.headers["content-type"] == "application/problem+json"
    assert says in problem["detail"]
    assert "secret" not in problem["detail"]
    assert problem["request_id"] == response.headers["x-request-id"]
    if status == 500:
        assert f"request {problem['request_id']}" in caplog.text
        assert "a secret of the process" in caplog.text


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"games": []}, id="no-games"),
        pytest.param({"games": [GAME | {"candidates": []}]}, id="no-candidates"),
        pytest.param({"games": [GAME | {"descriptions": ["  "]}]}, id="blank-description"),
        pytest.param({"games": [GAME | {"colour": 1}]}, id="unknown-key"),
        pytest.param({"games": [GAME | {"descriptions": ["x" * 8193]}]}, id="long-description"),
        pytest.param(["no", "object"], id="no-object"),
    ],
)
def test_bad_input_is_422_with_the_field(body):
    with serving(FakeModel) as client:
        response = client.post("/v1/score", json=body)
        broken = client.post("/v1/score", content=b'{"games": [', headers={"content-type": "application/json"})
    assert response.status_code == broken.status_code == 422
    assert response.json()["title"] == "Cannot be processed"
    assert response.json()["detail"]
    assert broken.headers["content-type"] == "application/problem+json"


def test_unknown_paths_and_methods_are_problems():
    with serving(FakeModel) as client:
        assert client.get("/nothing").json()["status"] == 404
        assert client.get("/v1/score").json()["status"] == 405


def test_token_is_needed_except_for_probes():
    with serving(FakeModel, access=Access(["s3cret"])) as client:
        body = {"games": [GAME]}
        assert client.post("/v1/score", json=body).status_code == 401
        assert client.post("/v1/score", json=body, headers={"Authorization": "Bearer s3cre"}).status_code == 401
        assert client.get("/metrics").status_code == 401
        assert client.post("/v1/score", json=body, headers={"Authorization": "Bearer s3cret"}).status_code == 200
        assert client.get("/healthz").status_code == 200


def test_large_bodies_are_413_with_and_without_their_length():
    with serving(FakeModel, limits=ServiceLimits(max_body_bytes=200, max_rows=5)) as client:
        told = client.post("/v1/score", content=b"x" * 201)
        streamed = client.post("/v1/score", content=iter([b"x" * 150, b"x" * 150]))
        rows = client.post("/v1/score", json={"games": [GAME]})  # 2 x 3 = 6 pairs
    assert [told.status_code, streamed.status_code, rows.status_code] == [413, 413, 413]
    assert "6 rows" in rows.json()["detail"]


def test_readiness_while_loading_and_after_a_failure():
    release = threading.Event()

    def load():
        assert release.wait(120)
        raise ModelError("no weights here")

    with serving(load, ready=503) as client:
        waiting = client.post("/v1/score", json={"games": [GAME]})
        assert client.get("/healthz").status_code == 200
        release.set()
        while (state := client.get("/readyz")).status_code == 503:
            time.sleep(0.005)
        failed = client.post("/v1/score", json={"games": [GAME]})
    assert (waiting.status_code, waiting.headers["retry-after"]) == (503, "1")
    assert (state.status_code, state.json()["status"]) == (500, "failed")
    assert "no weights here" in state.json()["detail"]
    assert failed.status_code == 500


def test_what_is_kept_of_images_is_part_of_health_and_metrics():
    class Keeps(FakeModel):
        def vision_cache(self):
            return CacheStatistics(entries=2, num_bytes=64, max_bytes=128, hits=1, misses=2)

        def prompt_cache(self):
            return None

    for model, cache in ((Keeps(), {"entries": 2, "num_bytes": 64, "max_bytes": 128}), (FakeModel(), None)):
        with serving(lambda model=model: model) as client:
            found = client.get("/readyz").json()
            assert found["vision_cache"] == (cache and {**cache, "hits": 1, "misses": 2, "evictions": 0})
            assert found["prompt_cache"] is None
            text = client.get("/metrics").text
            assert ("lewis_vision_cache_bytes 64" in text) == (cache is not None)
            assert "prompt_cache" not in text


def test_waiting_requests_are_packed_and_the_rest_is_refused():
    model = Gate()
    with serving(lambda: model, limits=ServiceLimits(max_waiting=3)) as client:
        answers: list[httpx.Response] = []

        def ask() -> None:
            answers.append(client.post("/v1/score", json={"games": [GAME]}))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        threads[0].start()
        assert model.entered.wait(120)
        for thread in threads[1:]:
            thread.start()
        while "lewis_queue_length 3" not in client.get("/metrics").text:
            time.sleep(0.005)
        refused = client.post("/v1/score", json={"games": [GAME]})
        model.open.set()
        for thread in threads:
            thread.join()
        metrics = client.get("/metrics").text
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert model.calls == [1, 3]  # the three that waited became one call
    assert [answer.status_code for answer in answers] == [200] * 4
    assert 'lewis_rows_total{kind="score"} 24' in metrics  # 4 requests x 6 pairs
    assert 'lewis_requests_total{path="/v1/score",status="503"} 1' in metrics
    assert "lewis_errors_total 1" in metrics


def test_an_error_reaches_only_the_request_that_caused_it():
    class SlowRaises(Raises):
        def score(self, games):
            time.sleep(0.05)  # the others queue up meanwhile
            return super().score(games)

    async def ask_all(app) -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
            names = ["a.jpg", "bad.jpg", "b.jpg", "out.jpg", "c.jpg", "crash.jpg"]
            return await asyncio.gather(
                *(client.post("/v1/score", json={"games": [GAME | {"candidates": [name]}]}) for name in names)
            )

    with serving(SlowRaises) as client:
        answers = asyncio.run(ask_all(client.app))
    assert [answer.status_code for answer in answers] == [200, 422, 200, 403, 200, 500]


def test_two_hundred_mixed_requests_get_their_own_answers():
    model = FakeModel(
        says_yes,
        answers=lambda image, question: len(question.prompt) % 3,
        writes=lambda image, prompt: f"{image}: {prompt}",
    )

    def request(index: int) -> tuple[str, dict]:
        image, text = f"{'i' * (index % 7)}.jpg", "d" * (1 + index // 7 % 7)
        if index % 3 == 0:
            return "/v1/score", {"games": [{"candidates": [image, "x.jpg"], "descriptions": [text]}]}
        if index % 3 == 1:
            return "/v1/choose", {
                "items": [{"image": image, "questions": [{"prompt": "q" * (index + 1), "choices": ["A", "B", "C"]}]}]
            }
        return "/v1/generate", {"items": [{"image": image, "prompt": f"p{index}", "num_return": 1 + index % 2}]}

    async def ask_all(app) -> list[dict]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
            answers = await asyncio.gather(*(client.post(path, json=body) for path, body in map(request, range(200))))
        return [answer.json() for answer in answers]

    with serving(lambda: model, limits=ServiceLimits(max_waiting=200)) as client:
        answers = asyncio.run(ask_all(client.app))
    for index, answer in enumerate(answers):
        _, body = request(index)
        if index % 3 == 0:
            [game] = body["games"]
            expected = [[says_yes(image, game["descriptions"][0]) for image in game["candidates"]]]
            assert answer["games"][0]["yes_probability"] == expected
        elif index % 3 == 1:
            log_probs = answer["items"][0][0]["log_probs"]
            assert log_probs.index(max(log_probs)) == (index + 1) % 3
        else:
            [item] = body["items"]
            assert answer["items"] == [[f"{item['image']}: p{index}"] * item["num_return"]]


@pytest.mark.parametrize(
    "broken", [lambda answers: answers[:-1], lambda answers: answers * 2, lambda answers: next(iter([]))]
)
def test_a_model_that_answers_too_little_or_too_much_is_a_crash(broken):
    class Broken(FakeModel):
        def score(self, games):
            return broken(super().score(games))

    with serving(Broken) as client:
        assert client.post("/v1/score", json={"games": [GAME]}).status_code == 500


def test_log_stays_quiet_under_load(caplog):
    caplog.set_level(logging.INFO, "lewis_core")
    started = time.monotonic()
    with serving(FakeModel) as client:
        for _ in range(100):
            client.post("/v1/score", json={"games": [GAME]})
    lines = [record for record in caplog.records if "requests" in record.message]
    assert len(lines) <= 1 + time.monotonic() - started
