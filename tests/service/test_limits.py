"""Too much, too late, too slow, given up: each has its status, its words, its id, and costs the model nothing."""

import asyncio
import json
import socket
import time
from typing import Any

import httpx
import pytest

from lewis_core.errors import ListenerDeadlineError
from lewis_core.listener.jobs import Job, JobQueue
from lewis_core.listener.limits import ServiceLimits
from lewis_core.listener.service import create_app
from lewis_core.testing import FakeModel
from tests.service.helpers import GAME, Asker, Gate, listening, serving, wait_for

BODY = {"games": [GAME]}
ASKED = {"candidate_paths": ["a.jpg"], "question": "?"}


def is_problem(response: httpx.Response, status: int) -> bool:
    problem = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["request_id"] == response.headers["x-request-id"]
    return response.status_code == problem["status"] == status


@pytest.mark.parametrize(
    ("limits", "path", "body", "status", "says"),
    [
        ({"max_images": 3}, "/v1/score", {"games": [GAME, GAME]}, 413, "4 images in one request; the limit is 3"),
        ({"max_images": 1}, "/score", {"candidate_paths": ["a", "b"], "question": "?"}, 413, "2 images"),
        ({"max_rows": 5}, "/v1/score", BODY, 413, "6 rows"),
        ({"max_description_chars": 4}, "/v1/score", BODY, 422, "a description of 5 characters; the limit is 4"),
        ({"max_prompt_chars": 4}, "/v1/generate", {"items": [{"image": None, "prompt": "12345"}]}, 422, "prompt of 5"),
        (
            {"max_prompt_chars": 4},
            "/batch_score",
            {"batch": [{"candidate_paths": ["a"], "question": "12345"}]},
            422,
            "5",
        ),
    ],
)
def test_too_much_is_refused_before_the_model_sees_it(
    limits: Any, path: str, body: Any, status: int, says: str
) -> None:
    model = FakeModel()
    with serving(lambda: model, limits=ServiceLimits(**limits)) as client:
        refused = client.post(path, json=body)
    assert is_problem(refused, status)
    assert says in refused.json()["detail"]
    assert model.asked == []


def test_bodies_are_counted_whatever_they_say_of_themselves() -> None:
    with listening(FakeModel, limits=ServiceLimits(max_body_bytes=1000)) as server:
        url = f"http://127.0.0.1:{server.port}/v1/score"
        told = httpx.post(url, content=b"x" * 1001)
        chunked = httpx.post(url, content=iter([b"x" * 600, b"x" * 600]))
        huge = Asker(lambda: raw(server.port, b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n"))
        assert b" 413 " in huge.wait().partition(b"\r\n")[0]
        endless = Asker(lambda: raw(server.port, CHUNKED + b"200\r\n" + b"x" * 512 + b"\r\n", again=20))
        assert b" 413 " in endless.wait().partition(b"\r\n")[0]
    assert is_problem(told, 413)
    assert is_problem(chunked, 413)


CHUNKED = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


def raw(port: int, data: bytes, again: int = 0) -> bytes:
    """Send bytes (the last chunk several times), and read until the answer's headers are there or nothing comes."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(data)
        for _ in range(again):
            try:
                connection.sendall(b"200\r\n" + b"x" * 512 + b"\r\n")
            except OSError:
                break
        received = b""
        try:
            while b"\r\n\r\n" not in received and (part := connection.recv(65536)):
                received += part
        except OSError:
            pass
        return received


def test_all_bodies_together_are_bounded() -> None:
    async def ask(app: Any) -> list[httpx.Response]:
        release = asyncio.Event()

        async def slow() -> Any:
            yield b"{" + b" " * 500
            await release.wait()
            yield b"}"

        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
            first = asyncio.create_task(client.post("/v1/score", content=slow()))
            await asyncio.sleep(0.05)
            second = await client.post("/v1/score", content=b" " * 600)
            release.set()
            return [await first, second, await client.post("/v1/score", json=BODY)]

    with serving(FakeModel, limits=ServiceLimits(max_buffered_bytes=1000)) as client:
        first, second, third = asyncio.run(ask(client.app))
    assert first.status_code == 422
    assert is_problem(second, 503)
    assert second.headers["retry-after"] == "1"
    assert third.status_code == 200  # what was held is free again


def test_a_body_that_trickles_is_ended() -> None:
    with listening(FakeModel, limits=ServiceLimits(body_timeout_s=0.2)) as server:
        answer = raw(server.port, b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
    assert b" 408 " in answer.partition(b"\r\n")[0]
    assert b"application/problem+json" in answer


@pytest.mark.parametrize(
    ("headers", "field"),
    [
        ({"X-Request-Timeout": "0.2"}, {}),
        ({}, {"timeout_s": 0.2}),
        ({"X-Request-Timeout": "90"}, {"timeout_s": 0.2}),
    ],
)
def test_a_deadline_is_kept_and_its_work_dropped(headers: dict[str, str], field: dict[str, float]) -> None:
    model = Gate()
    with serving(lambda: model) as client:
        first = Asker(lambda: client.post("/v1/score", json=BODY))
        assert model.entered.wait(60)
        late = client.post("/v1/score", json=BODY | field, headers=headers)
        model.open.set()
        assert first.wait().status_code == 200
        assert client.post("/v1/score", json=BODY).status_code == 200
        metrics = client.get("/metrics").text
    assert is_problem(late, 504)
    assert "not ready after 0.2 s" in late.json()["detail"]
    assert model.calls == [1, 1], "what nobody waited for was computed all the same"
    assert 'lewis_dropped_total{reason="given_up"} 1' in metrics


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "inf", "soon"])
def test_an_impossible_deadline_is_refused(timeout: str) -> None:
    with serving(FakeModel) as client:
        refused = client.post("/v1/score", json=BODY, headers={"X-Request-Timeout": timeout})
    assert is_problem(refused, 422)
    assert "X-Request-Timeout" in refused.json()["detail"]


def test_a_client_that_goes_away_frees_its_work() -> None:
    model = Gate()
    with listening(lambda: model) as server:
        url = f"http://127.0.0.1:{server.port}"
        first = Asker(lambda: httpx.post(url + "/v1/score", json=BODY, timeout=60))
        assert model.entered.wait(60)
        content = json.dumps(BODY).encode()
        head = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.port)) as gone:
            gone.sendall(head % len(content) + content)
            wait_for(lambda: "lewis_queue_length 1" in httpx.get(url + "/metrics").text)
        wait_for(lambda: 'status="499"' in httpx.get(url + "/metrics").text)
        model.open.set()
        assert first.wait().status_code == 200
        wait_for(lambda: 'reason="given_up"} 1' in httpx.get(url + "/metrics").text)
    assert model.calls == [1]


def job(tokens: int = 10, deadline: float = float("inf")) -> Job:
    return Job("score", ["x"], [1], [tokens], deadline=deadline)


def test_a_queue_that_is_too_slow_refuses_at_the_door() -> None:
    queue = JobQueue(max_waiting=10, call_tokens=100, max_wait_s=50)
    queue.learn("score", tokens=10, seconds=20)  # 2 s a token
    queue.add(job())  # 20 s of work; an empty queue takes everything, or its pace would never be learnt again
    assert queue.expected_wait_s() == 20
    with pytest.raises(Exception, match=r"about 20\.0 s of work are waiting") as refused:
        queue.add(job(deadline=time.monotonic() + 15))
    assert refused.value.retry_after_s == 10  # half of the work
    queue.add(job())
    queue.add(job())  # 40 s wait before it, 50 are allowed
    with pytest.raises(Exception, match=r"about 60\.0 s"):
        queue.add(job())
    queue.learn("score", tokens=10, seconds=0)  # a third of the way to the newest pace: 1.4 s
    assert queue.expected_wait_s() == pytest.approx(30 * 2 * 0.7)


def test_the_call_that_runs_and_the_request_itself_are_counted_in() -> None:
    queue = JobQueue(max_waiting=10, call_tokens=100, max_wait_s=500)
    queue.learn("score", tokens=10, seconds=20)
    queue.add(job())
    assert len(queue.cut()) == 1  # 20 s of work are running, nothing waits
    assert queue.expected_wait_s() == pytest.approx(20, abs=5)
    with pytest.raises(Exception, match="of work are waiting already"):
        queue.add(job(deadline=time.monotonic() + 55))  # 20 s, and 20 s for itself, by half more to be sure
    queue.add(job(deadline=time.monotonic() + 65))
    queue.learn("score", tokens=10, seconds=20)  # the call is over
    assert queue.expected_wait_s() == pytest.approx(20)


def test_what_waited_too_long_is_told_so() -> None:
    queue = JobQueue(max_waiting=10, call_tokens=100, max_wait_s=50)
    old, late, fresh = job(), job(), job()
    for one in (old, late, fresh):
        queue.add(one)
    old.queued_at -= 51
    late.deadline = time.monotonic() - 1
    assert queue.age() == pytest.approx(51, abs=5)
    assert queue.prune() == {"age": 1, "deadline": 1}
    assert "without having its turn" in str(old.future.exception(0))
    assert isinstance(late.future.exception(0), ListenerDeadlineError)
    assert [one.job for one in queue.cut()] == [fresh]


def test_a_full_queue_has_room_again_when_clients_have_gone() -> None:
    queue = JobQueue(max_waiting=2, call_tokens=100, max_wait_s=50)
    first, second = job(), job()
    queue.add(first)
    queue.add(second)
    with pytest.raises(Exception, match="2 requests are waiting already"):
        queue.add(job())
    first.future.cancel()
    queue.add(job())
    assert len(queue) == 2


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("train-17:3.a_B", True), ("x" * 128, True), ("x" * 129, False), ("two words", False), ("ü", False), ("", False)],
)
def test_request_ids_are_taken_over_if_they_are_well_formed(sent: str, kept: bool) -> None:
    with serving(FakeModel) as client:
        headers = {"X-Request-Id": sent.encode()}
        given = client.post("/v1/score", json=BODY, headers=headers).headers["x-request-id"]
        bad = client.post("/v1/score", json={}, headers=headers)
    assert (given == sent) is kept
    assert kept or len(given) == 16
    assert is_problem(bad, 422)


def test_web_pages_are_not_answered() -> None:
    with serving(FakeModel) as client:
        for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            assert is_problem(client.post("/v1/score", json=BODY, headers=headers), 403)
        asked = client.options("/v1/score", headers={"Origin": "https://x", "Access-Control-Request-Method": "POST"})
        assert not [name for name in asked.headers if name.startswith("access-control")]


def test_an_answer_says_little_about_the_server() -> None:
    with listening(FakeModel) as server:
        answer = httpx.get(f"http://127.0.0.1:{server.port}/healthz")
    assert set(answer.headers) == {
        *("date", "content-type", "content-length", "x-request-id", "x-content-type-options", "cache-control")
    }


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b'{"games": ' + b"9" * 5000 + b"}", id="long-number"),
        pytest.param(b'{"\\ud800": 1}', id="half-a-character"),
        pytest.param(b"\xff\xfe", id="no-text"),
        pytest.param(b'{"games": [NaN]}', id="nan"),
        pytest.param(b"", id="empty"),
    ],
)
def test_hostile_json_is_the_client_s_error(body: bytes) -> None:
    with serving(FakeModel) as client:
        refused = client.post("/v1/score", content=body, headers={"content-type": "application/json"})
        assert client.post("/v1/score", json=BODY).status_code == 200
    assert refused.status_code in (400, 422)
    assert is_problem(refused, refused.status_code)


def test_the_contract_is_published_with_its_errors() -> None:
    with serving(FakeModel) as client:
        paths = client.get("/openapi.json").json()["paths"]
    for path in ("/v1/score", "/v1/choose", "/v1/generate", "/score", "/batch_score"):
        answers = paths[path]["post"]["responses"]
        assert {"200", "401", "403", "413", "422", "503", "504"} <= set(answers)
        assert "application/problem+json" in answers["503"]["content"]


def test_without_a_client_the_application_still_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that goes away before its body has arrived is no crash."""
    app = create_app(FakeModel, model_name="fake")
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/score", "headers": [], "query_string": b"", "app": app}
    asyncio.run(app(scope, receive, send))
    assert sent == []
