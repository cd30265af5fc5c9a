"""Processes of the stack: started once, found again, never confused with others', stopped with all they started."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from infra.stack.__main__ import main
from infra.stack.parts import Stack
from infra.stack.processes import Keeper, Part, StackError
from infra.stack.settings import StackSettings
from tasks.services import free_port

PARENT = """
import pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
pathlib.Path("child").write_text(str(child.pid))
pathlib.Path("ready").touch()
time.sleep(600)
"""


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    keeper = Keeper(tmp_path, tmp_path)
    yield keeper
    for file in (tmp_path / "pids").glob("*.json"):
        keeper.stop(sleeper(tmp_path, file.stem))


def sleeper(folder: Path, name: str = "sleeper", code: str = "", stop_s: float = 5.0) -> Part:
    """A part that is ready when it has written a file."""
    code = code or "import pathlib, time; pathlib.Path('ready').touch(); time.sleep(600)"
    ready = folder / "ready"
    return Part(name, [sys.executable, "-c", code], ready.exists, "nowhere", stop_s=stop_s)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_part_is_started_once_and_again_after_kill_9(tmp_path: Path, keeper: Keeper) -> None:
    part = sleeper(tmp_path)
    assert keeper.start(part, 60) is True
    first = keeper.find("sleeper")
    assert first is not None
    assert keeper.start(part, 60) is False
    assert keeper.find("sleeper") == first
    first.kill()
    wait_until(lambda: keeper.find("sleeper") is None)
    (tmp_path / "ready").unlink()
    assert keeper.start(part, 60) is True
    assert keeper.find("sleeper") != first


@pytest.mark.parametrize("keeps_orphans", [False, True])
def test_what_a_killed_part_left_behind_is_ended_first(tmp_path: Path, keeper: Keeper, keeps_orphans: bool) -> None:
    code = PARENT.replace(", start_new_session=True", "")
    part = dataclasses.replace(sleeper(tmp_path, code=code, stop_s=0.3), keeps_orphans=keeps_orphans)
    keeper.start(part, 60)
    child = psutil.Process(int((tmp_path / "child").read_text(encoding="utf-8")))
    leader = keeper.find("sleeper")
    assert leader is not None
    leader.kill()
    wait_until(lambda: keeper.find("sleeper") is None)
    assert [process.pid for process in keeper.orphans("sleeper")] == [child.pid]
    if keeps_orphans:
        assert keeper.stop(part) is False  # the part itself had ended before
    else:
        keeper.start(part, 60)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_it_is_not_ours_if_somebody_else_has_its_id(tmp_path: Path, keeper: Keeper) -> None:
    known = {"pid": os.getpid(), "created": psutil.Process().create_time() - 1000}
    (tmp_path / "pids/sleeper.json").write_text(json.dumps(known), encoding="utf-8")
    assert keeper.find("sleeper") is None
    assert keeper.stop(sleeper(tmp_path)) is False  # or this test would have ended itself


def test_a_torn_file_means_that_it_does_not_run(tmp_path: Path, keeper: Keeper) -> None:
    (tmp_path / "pids/sleeper.json").write_text('{"pid": 1', encoding="utf-8")
    assert keeper.find("sleeper") is None


def test_stopping_ends_what_ignores_it_and_what_left_its_group(tmp_path: Path, keeper: Keeper) -> None:
    part = sleeper(tmp_path, code=PARENT, stop_s=0.3)
    keeper.start(part, 60)
    child = psutil.Process(int((tmp_path / "child").read_text(encoding="utf-8")))
    assert keeper.stop(part) is True
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    assert keeper.find("sleeper") is None
    assert keeper.stop(part) is False


def test_a_part_that_ends_while_starting_shows_why(tmp_path: Path, keeper: Keeper) -> None:
    with pytest.raises(StackError, match=r"sleeper ended while starting[\s\S]*no such database"):
        keeper.start(sleeper(tmp_path, code="raise SystemExit('no such database')"), 60)


def test_a_part_that_never_answers_is_an_error(tmp_path: Path, keeper: Keeper) -> None:
    with pytest.raises(StackError, match="has not answered at nowhere for"):
        keeper.start(sleeper(tmp_path, code="import time; time.sleep(600)"), 0.2)


def test_a_port_of_somebody_else_is_named(tmp_path: Path, keeper: Keeper) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        part = Part("prefect", ["false"], lambda: True, "nowhere", port)
        with pytest.raises(StackError, match=f"port {port}, which another program has.*LEWIS_STACK_PREFECT_PORT"):
            keeper.start(part, 1)


def test_children_can_be_interrupted_though_the_shell_ignores_it(tmp_path: Path) -> None:
    """A worker turns SIGTERM into SIGINT; started from a background shell it would ignore that, and never end."""
    code = (
        "import signal, sys; from infra.stack.__main__ import main; main(['status'])\n"
        'import subprocess; shown = "import signal; print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"\n'
        "subprocess.run([sys.executable, '-c', shown])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LEWIS_STACK_DIR": str(tmp_path), "LEWIS_STACK_DATABASE": "sqlite"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert shown.stdout.splitlines()[-1] == "False"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LEWIS_STACK_DIR", str(tmp_path))
    monkeypatch.setenv("LEWIS_STACK_DATABASE", "sqlite")
    for name in ("PREFECT", "MLFLOW", "LISTENER"):
        monkeypatch.setenv(f"LEWIS_STACK_{name}_PORT", str(free_port()))
    return tmp_path


def test_status_of_a_stack_that_is_down(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        [name, "down"] for name in ("prefect", "mlflow", "listener", "worker")
    ]
    assert main(["down"]) == 0
    assert main(["logs", "nothing"]) == 1
    assert "there are prefect, mlflow, listener, worker" in capsys.readouterr().err


def test_postgres_without_its_programs_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.stack.parts.find_programs", lambda: None)
    with pytest.raises(StackError, match="there is no initdb"):
        Stack(StackSettings(database="postgres"))
    assert Stack(StackSettings(database="auto")).database is None


def test_no_part_shows_a_password_or_leaves_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.stack.parts.find_programs", lambda: tmp_path)
    stack = Stack(StackSettings(dir=tmp_path))
    assert stack.database is not None
    stack.database._write_password()
    assert stack.database.password_file.stat().st_mode & 0o777 == 0o600
    secret = stack.database._password()
    assert len(secret) >= 32
    for part in stack.parts():
        shown = " ".join([*part.command, *part.env.values(), part.address])
        assert secret not in shown
        assert "0.0.0.0" not in shown
        assert part.port is None or "127.0.0.1" in " ".join(part.command) or part.name == "listener"


def test_every_setting_is_documented() -> None:
    page = (Path(__file__).parents[2] / "infra/docs/production.md").read_text(encoding="utf-8")
    for name, field in StackSettings.model_fields.items():
        row = next((line for line in page.splitlines() if f"`LEWIS_STACK_{name.upper()}`" in line), None)
        assert row is not None, name
        default = f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
        assert f"| `{default}` |" in row, f"{name}: {row}"
        assert field.description, name
