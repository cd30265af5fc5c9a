"""Tokens: who is let in, that several are valid at a time, and that no log ever shows one."""

import logging
from pathlib import Path

import pytest

from lewis_core.errors import ConfigError
from lewis_core.listener import access as access_module
from lewis_core.listener.__main__ import read_tokens
from lewis_core.listener.access import Access, parse_tokens, read_token_file
from lewis_core.testing import FakeModel
from tests.service.helpers import GAME, serving

OLD, NEW = "old-token-0123456789", "new-token-0123456789"


@pytest.mark.parametrize(
    ("header", "admitted"),
    [
        (f"Bearer {OLD}", True),
        (f"bearer {NEW}", True),
        (f"Bearer  {NEW} ", True),
        (f"Basic {OLD}", False),
        (f"Bearer {OLD}x", False),
        (f"Bearer {OLD[:-1]}", False),
        (OLD, False),
        ("Bearer ", False),
        ("", False),
    ],
)
def test_one_of_the_tokens_is_needed(header: str, admitted: bool) -> None:
    assert Access([OLD, NEW]).admits(header.encode()) is admitted
    assert Access().admits(header.encode())


def test_every_token_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    real = access_module.hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return real(one, other)

    monkeypatch.setattr(access_module.hmac, "compare_digest", compare)
    access = Access([OLD, NEW])
    for header in (f"Bearer {OLD}", f"Bearer {NEW}", "Bearer x", "nonsense"):
        compared.clear()
        access.admits(header.encode())
        assert len(compared) == 2  # whatever is given, and wherever it stands
        assert {len(one) for pair in compared for one in pair} == {32}  # digests: a token's length does not show


def test_tokens_are_exchanged_without_an_outage() -> None:
    access = Access([OLD])
    with serving(FakeModel, access=access) as client:

        def status(token: str) -> int:
            headers = {"Authorization": f"Bearer {token}"}
            return client.post("/v1/score", json={"games": [GAME]}, headers=headers).status_code

        assert [status(OLD), status(NEW)] == [200, 401]
        access.replace([OLD, NEW])
        assert [status(OLD), status(NEW)] == [200, 200]
        access.replace([NEW])
        assert [status(OLD), status(NEW)] == [401, 200]


def test_files_of_tokens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"# the next one\n{NEW}\n\n  {OLD}  \n")
    file.chmod(0o600)
    assert read_token_file(file) == (NEW, OLD)
    assert caplog.messages == []
    file.chmod(0o640)
    read_token_file(file)
    assert "chmod 600" in caplog.text


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "is empty"), ("# nothing\n", "is empty"), ("short", "at least 16"), ("with space in the middle", "visible")],
)
def test_tokens_that_are_none_are_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        parse_tokens(text, "the file")
    assert not text or text not in str(caught.value)


def test_beyond_this_machine_a_token_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tokens"
    file.write_text(OLD)
    monkeypatch.setenv("SERVICE_TOKENS", NEW)
    for host in ("127.0.0.1", "localhost", "::1", "127.8.9.1"):
        assert read_tokens(None, None, host) == ()
    for host in ("0.0.0.0", "::", "10.0.0.7", "example.org", "0", ""):
        with pytest.raises(ConfigError, match="needs a --token-file"):
            read_tokens(None, None, host)
        assert read_tokens(file, "SERVICE_TOKENS", host) == (OLD, NEW)
    with pytest.raises(ConfigError, match="NO_SUCH is empty"):
        read_tokens(None, "NO_SUCH", "127.0.0.1")


def test_no_log_and_no_answer_shows_a_token(caplog: pytest.LogCaptureFixture) -> None:
    """At the most talkative level, on every way that a request can end."""
    caplog.set_level(logging.DEBUG)

    class Crashes(FakeModel):
        def score(self, games: object) -> list[object]:
            raise RuntimeError("broken")

    with serving(Crashes, access=Access([OLD])) as client:
        said = []
        for token in (OLD, "wrong-token-0123456789"):
            headers = {"Authorization": f"Bearer {token}"}
            said.append(client.post("/v1/score", json={"games": [GAME]}, headers=headers))
            said.append(client.post("/v1/score", content=b"{", headers=headers))
            said.append(client.get("/metrics", headers=headers))
        said.append(client.get("/readyz"))
    assert [answer.status_code for answer in said] == [500, 422, 200, 401, 401, 401, 200]
    everything = caplog.text + "".join(answer.text + str(answer.headers) for answer in said)
    assert "broken" in caplog.text  # there is a log
    assert OLD not in everything
    assert "wrong-token" not in everything
    assert OLD not in repr(vars(Access([OLD])))
