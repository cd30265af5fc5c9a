"""Answer k belongs to request k, whatever else is asked at the same time, and in whatever calls they share.

A thousand mixed requests, some of them bad, some given up, are asked at once and compared with the answers that each
gets alone; with a fake model exactly, with a real one to rounding.
"""

import asyncio
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from lewis_core.config.base import ModelRef, Runtime
from lewis_core.errors import ImageError
from lewis_core.listener.limits import ServiceLimits
from lewis_core.models.vlm import open_model
from lewis_core.seeding import stable_seed
from lewis_core.testing import FakeModel, write_image
from tests.service.helpers import count, serving

NUM_PHOTOS = 6
Request = tuple[str, dict[str, Any]]
WORDS = ("red", "blue", "striped", "small", "round", "worn")


def make_request(number: int, bad_share: float) -> Request:
    """One of five kinds of request, of a size that its number decides."""
    rng = random.Random(number)

    def photo() -> str:
        return "bad.jpg" if rng.random() < bad_share else f"{rng.randrange(NUM_PHOTOS)}.jpg"

    def text() -> str:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 5)))

    match number % 5:
        case 0:
            games = [
                {"candidates": [photo() for _ in range(rng.randint(1, 3))], "descriptions": [text(), text()]}
                for _ in range(rng.randint(1, 3))
            ]
            return "/v1/score", {"games": games}
        case 1:
            questions = [{"prompt": text(), "choices": ["A", "B", "C"]} for _ in range(rng.randint(1, 3))]
            return "/v1/choose", {"items": [{"image": photo(), "questions": questions}]}
        case 2:
            item = {"image": photo(), "prompt": text(), "num_return": rng.randint(1, 2), "max_new_tokens": 4}
            return "/v1/generate", {"items": [item | {"temperature": 1.0, "seed": number}]}
        case 3:
            first, second = photo(), photo()
            while second == first:  # of two candidates that are one photo, rounding would choose
                second = photo()
            return "/score", {"candidate_paths": [first, second], "question": text()}
        case _:
            batch = [{"candidate_paths": [photo()], "question": text()} for _ in range(rng.randint(1, 3))]
            return "/batch_score", {"batch": batch}


class Uneven(FakeModel):
    """Answers from content alone, in calls of uneven length; one photo cannot be used."""

    def __init__(self, max_pause_s: float) -> None:
        def number(*content: object) -> int:
            return stable_seed(0, *map(str, content))

        super().__init__(
            lambda image, text: (1 + number(image, text) % 98) / 100,
            lambda image, question: number(image, question.prompt) % len(question.choices),
            lambda image, prompt: f"{number(image, prompt)}",
        )
        self._pauses, self._max_pause_s = random.Random(0), max_pause_s
        self.calls = 0

    def _work(self, images: Sequence[str | None]) -> None:
        self.calls += 1
        time.sleep(self._pauses.random() * self._max_pause_s)
        if "bad.jpg" in images:
            raise ImageError("bad.jpg", "truncated")

    def score(self, games: Sequence[Any]) -> Any:
        """Work, and answer."""
        self._work([image for game in games for image in game.candidates])
        return super().score(games)

    def choose(self, items: Sequence[Any]) -> Any:
        """Work, and answer."""
        self._work([item.image for item in items])
        return super().choose(items)

    def generate(self, items: Sequence[Any]) -> Any:
        """Work, and answer."""
        self._work([item.image for item in items])
        return super().generate(items)


async def ask_at_once(app: Any, requests: Sequence[Request], give_up: float) -> list[httpx.Response | None]:
    """Ask for everything at the same time; a share of the clients goes away before the answer."""
    rng = random.Random(1)

    async def ask(client: httpx.AsyncClient, request: Request) -> httpx.Response | None:
        await asyncio.sleep(rng.random() * 0.2)
        asking = asyncio.create_task(client.post(request[0], json=request[1]))
        if rng.random() < give_up:
            await asyncio.sleep(rng.random() * 0.05)
            asking.cancel()
        try:
            return await asking
        except asyncio.CancelledError:
            return None

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service", timeout=300) as client:
        return list(await asyncio.gather(*(ask(client, request) for request in requests)))


def content(answer: httpx.Response) -> Any:
    """What an answer says, without its times and ids."""
    found = answer.json()
    return {key: value for key, value in found.items() if key not in ("took", "took_s", "request_id")}


def test_a_thousand_requests_get_the_answers_that_they_get_alone() -> None:
    requests = [make_request(number, bad_share=0.02) for number in range(1000)]
    with serving(lambda: Uneven(0.0)) as alone:
        expected = [alone.post(path, json=body) for path, body in requests]
    model = Uneven(0.004)
    limits = ServiceLimits(max_waiting=2000, call_tokens=6000)
    with serving(lambda: model, limits=limits) as client:
        answers = asyncio.run(ask_at_once(client.app, requests, give_up=0.05))
        assert client.get("/readyz").json()["status"] == "ready"
        assert "lewis_queue_length 0" in client.get("/metrics").text
    answered = [(answer, right) for answer, right in zip(answers, expected, strict=True) if answer is not None]
    assert 900 < len(answered) < 1000
    assert {answer.status_code for answer, _ in answered} == {200, 422}
    for answer, right in answered:
        assert (answer.status_code, content(answer)) == (right.status_code, content(right))
    count("requests at once, compared with serial answers (fake model)", len(answered))
    assert model.calls < 900, "requests did not share calls"


def is_close(one: Any, other: Any, tolerance: float = 1e-5) -> bool:
    """Whether two answers are the same up to rounding: probabilities to 1e-5, logarithms to 1e-5 of their size."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            is_close(one[key], other[key], 1e-4 if "log" in key else tolerance) for key in one
        )
    if isinstance(one, list):
        return len(one) == len(other) and all(is_close(*pair, tolerance) for pair in zip(one, other, strict=True))
    return math.isclose(one, other, rel_tol=1e-5, abs_tol=tolerance) if isinstance(one, float) else one == other


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(NUM_PHOTOS):
        write_image(folder / f"{number}.jpg", number, size=112)
    return folder


def test_the_pocket_model_answers_as_it_does_alone(photos: Path) -> None:
    ref = ModelRef(path="pocket:base", prompts="concise", dtype="float32", max_pixels=12544, min_pixels=12544)
    model = open_model(ref, Runtime(device="cpu", torch_threads=1), photos)
    requests = [make_request(number, bad_share=0.05) for number in range(25)]

    def alone(client: TestClient) -> list[httpx.Response]:
        return [client.post(path, json=body) for path, body in requests]

    with serving(lambda: model, limits=ServiceLimits(call_tokens=3000)) as client:
        expected = alone(client)
        answers = asyncio.run(ask_at_once(client.app, requests, give_up=0.0))
    assert [answer.status_code for answer in answers] == [right.status_code for right in expected]
    assert {200, 422} == {answer.status_code for answer in answers}
    for answer, right in zip(answers, expected, strict=True):
        assert is_close(content(answer), content(right)), (content(answer), content(right))
    count("requests at once, compared with serial answers (pocket model)", len(answers))
