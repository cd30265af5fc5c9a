"""Connections of the impatient and the malicious: slow headers, unread answers, crowds."""

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol

from lewis_core.listener import server as server_module
from lewis_core.testing import FakeModel
from tests.service.helpers import GAME, Asker, Gate, listening, wait_for

BODY = {"games": [GAME]}
Protocol = server_module.PatientProtocol


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A service whose patience with connections is short."""
    monkeypatch.setattr(Protocol, "header_timeout_s", 0.3)
    monkeypatch.setattr(Protocol, "write_timeout_s", 0.3)
    with listening(lambda: FakeModel(writes=lambda image, prompt: "x" * 1_000_000)) as server:
        yield server.port


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def is_cut(connection: socket.socket) -> bool:
    """Whether the other side ends the connection, without an answer."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(
    "begin",
    [
        pytest.param(b"", id="says-nothing"),
        pytest.param(b"POST /v1/sc", id="half-a-line"),
        pytest.param(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nX-A: b\r\n", id="headers-without-end"),
    ],
)
def test_slow_headers_are_cut(port: int, begin: bytes) -> None:
    with connect(port) as slow:
        slow.sendall(begin)
        assert is_cut(slow)
    assert httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200


def test_trickling_does_not_help(port: int) -> None:
    """Every byte in time, but never the end: the clock is that of the whole headers."""
    with connect(port) as slow:
        slow.settimeout(0.05)
        for number in range(10_000):
            try:
                slow.sendall(b"GET / HTTP/1.1\r\n" if number == 0 else b"X-%d: y\r\n" % number)
                assert slow.recv(1) == b""
                break
            except TimeoutError:
                continue
            except (ConnectionResetError, BrokenPipeError):
                break
        else:
            pytest.fail("the connection was never cut")


def test_slow_headers_of_a_second_request_are_cut(port: int) -> None:
    with connect(port) as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b""
        while b"alive" not in received:
            received += slow.recv(65536)
        slow.sendall(b"GET /he")
        assert is_cut(slow)


def test_a_long_answer_takes_its_time_but_an_unread_one_is_cut(port: int) -> None:
    url = f"http://127.0.0.1:{port}/v1/generate"
    body = {"items": [{"image": None, "prompt": "p", "num_return": 40, "temperature": 1}]}
    assert len(httpx.post(url, json=body, timeout=60).content) > 40_000_000
    request = httpx.Request("POST", url, json=body)
    lines = ["POST /v1/generate HTTP/1.1", "Host: x", "Content-Type: application/json"]
    head = "\r\n".join([*lines, f"Content-Length: {len(request.content)}", "\r\n"])
    with connect(port) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.sendall(head.encode() + request.content)
        wait_for(lambda: not server_connections(port, deaf))


def server_connections(port: int, client: socket.socket) -> bool:
    """Whether the service still holds its end of a connection."""
    import psutil

    local = client.getsockname()[1]
    return any(c.raddr and c.raddr.port == local and c.laddr.port == port for c in psutil.Process().net_connections())


def test_crowds_are_sent_away_and_the_others_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Protocol, "max_connections", 8)
    with listening(FakeModel) as server:
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as early:
            assert early.post("/v1/score", json=BODY).status_code == 200
            crowd = [connect(server.port) for _ in range(30)]
            wait_for(lambda: len(server.server_state.connections) == 8)
            assert early.post("/v1/score", json=BODY).status_code == 200
            for one in crowd:
                one.close()
        wait_for(lambda: not server.server_state.connections)


def test_connections_that_wait_for_the_model_are_left_alone(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clocks are for headers and for unread answers, not for thinking."""
    model = Gate()
    with listening(lambda: model) as server:
        asked = Asker(lambda: httpx.post(f"http://127.0.0.1:{server.port}/v1/score", json=BODY, timeout=60))
        assert model.entered.wait(60)
        with connect(server.port) as slow:
            assert is_cut(slow)  # as long as the clock of headers
        model.open.set()
        assert asked.wait().status_code == 200


def test_all_times_are_monotonic() -> None:
    """A system clock that jumps must not end a request, a rest or a drain."""
    sources = sorted(Path(server_module.__file__).parent.glob("*.py"))
    assert len(sources) > 10
    for source in sources:
        text = source.read_text(encoding="utf-8")
        assert not re.search(r"\btime\.time\(|datetime\.|\btime_ns\(", text), source.name


def test_uvicorn_s_protocol_is_as_we_know_it() -> None:
    """What the subclass relies on; an upgrade that changes it has to be looked at."""
    for name in ("connection_made", "connection_lost", "data_received", "pause_writing", "resume_writing"):
        assert callable(getattr(H11Protocol, name))
    assert callable(H11Protocol.on_response_complete)
    assert {"cycle", "connections", "transport", "loop"} <= set(H11Protocol.__init__.__code__.co_names)
