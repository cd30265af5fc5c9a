"""Guarded processes: errors carry last lines, nothing outlives its parent."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import copy_context
from pathlib import Path

import psutil
import pytest

from lewis_core.errors import ProcessError
from tasks.processes import GUARD, Process, is_closing, process_scope, run_process

PYTHON = [sys.executable, "-S", "-c"]


@pytest.fixture(autouse=True)
def scope() -> Iterator[None]:
    """Processes may be started only inside a scope, once there was one."""
    with process_scope():
        yield


def wait_until(condition: Callable[[], bool], timeout_s: float = 120.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def running(marker: str) -> list[int]:
    """Processes that have a marker among their arguments."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if marker in (process.info["cmdline"] or []):
            found.append(process.pid)
    return found


def test_lines_are_followed_in_order(tmp_path: Path) -> None:
    lines: list[str] = []
    run_process("count", [*PYTHON, "for i in range(2000): print(i)"], tmp_path / "log", lines.append)
    assert lines == [str(number) for number in range(2000)]


def test_a_failure_carries_status_and_last_lines(tmp_path: Path) -> None:
    code = "import sys; [print(i) for i in range(30)]; sys.exit(3)"
    with pytest.raises(ProcessError, match="count ended with exit status 3") as caught:
        run_process("count", [*PYTHON, code], tmp_path / "log")
    assert caught.value.code == 3
    assert caught.value.tail == tuple(str(number) for number in range(10, 30))


def test_a_signal_is_reported_as_128_plus_its_number(tmp_path: Path) -> None:
    with pytest.raises(ProcessError) as caught:
        run_process("abort", [*PYTHON, "import os; os.kill(os.getpid(), 9)"], tmp_path / "log")
    assert caught.value.code == 128 + 9


def test_a_missing_command_is_an_error_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(ProcessError, match="cannot start /no/such/command"):
        run_process("missing", ["/no/such/command"], tmp_path / "log")


def test_a_process_that_ignores_sigterm_is_ended_at_its_time_limit(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(99)"
    started = time.monotonic()
    with pytest.raises(ProcessError, match="ran longer than 1 s"):
        run_process("stubborn", [*PYTHON, code], tmp_path / "log", timeout_s=1.0, grace_s=0.5)
    assert time.monotonic() - started < 60  # it would sleep for 99 s


def test_a_log_file_is_appended_and_only_new_lines_are_followed(tmp_path: Path) -> None:
    lines: list[str] = []
    for word in ("first", "second"):
        run_process("say", [*PYTHON, f"print('{word}')"], tmp_path / "log", lines.append)
    assert lines == ["first", "second"]
    assert (tmp_path / "log").read_text() == "first\nsecond\n"


def test_nothing_outlives_its_parent_where_the_log_cannot_be_written() -> None:
    marker = f"full-{time.time_ns()}"
    command = [*PYTHON, "import time; time.sleep(99)", marker]
    with subprocess.Popen([sys.executable, str(GUARD), "5", "/dev/full", *command], stdin=subprocess.PIPE) as guard:
        assert wait_until(lambda: len(running(marker)) == 2), "the guard and its child"
        assert guard.stdin is not None
        guard.stdin.close()
        assert guard.wait(60) == 128 + signal.SIGTERM
    assert running(marker) == []


def test_a_full_disk_is_said_once_however_many_lines_it_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def keep(_line: str) -> None:
        raise OSError(28, "No space left on device")

    run_process("many", [*PYTHON, "print('one'); print('two')"], tmp_path / "log", keep)
    assert caplog.messages == ["many: what it says cannot be kept: [Errno 28] No space left on device"]


def test_a_failing_line_handler_does_not_stop_the_following(tmp_path: Path) -> None:
    seen: list[str] = []

    def handle(line: str) -> None:
        seen.append(line)
        raise ValueError(line)

    run_process("say", [*PYTHON, "print(1); print(2)"], tmp_path / "log", handle)
    assert seen == ["1", "2"]


def test_the_scope_ends_what_is_left_and_starts_nothing_more(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), process_scope():
        process = Process("sleep", [*PYTHON, "import time; time.sleep(99)"], tmp_path / "log")
        assert process.is_alive
        late = copy_context()  # as a thread of the flow has it, which lives on for a while
        raise KeyboardInterrupt
    assert not process.is_alive
    with pytest.raises(ProcessError, match="the flow is ending"):
        late.run(Process, "late", [*PYTHON, "pass"], tmp_path / "log")
    with process_scope():
        run_process("again", [*PYTHON, "pass"], tmp_path / "log")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill-9", "sigterm"])
def test_nothing_outlives_a_killed_parent(tmp_path: Path, number: signal.Signals) -> None:
    """Child, grandchild in a session of its own, and an orphan of a process that ended: all gone within seconds."""
    marker = f"marker-{os.getpid()}-{number}"
    sleep = f"[sys.executable, '-S', '-c', 'import time; time.sleep(600)', '{marker}']"
    child = f"""
        import subprocess, sys, time
        subprocess.Popen({sleep}, start_new_session=True)
        subprocess.run([sys.executable, '-S', '-c', 'import subprocess, sys; '
                        'subprocess.Popen({sleep.replace("'", chr(34))}, start_new_session=True)'])
        time.sleep(600)
    """
    parent = f"""
        import sys, time
        from pathlib import Path
        from tasks.processes import Process
        Process("child", [sys.executable, "-S", "-c", {textwrap.dedent(child)!r}, "{marker}"], Path(sys.argv[1]))
        time.sleep(600)
    """
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(parent))
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path / "log")], cwd=Path(__file__).parents[2])
    try:
        assert wait_until(lambda: len(running(marker)) >= 4), (tmp_path / "log").read_text()
        process.send_signal(number)
        process.wait()
        assert wait_until(lambda: not running(marker)), (tmp_path / "log").read_text()
    finally:
        for pid in running(marker):
            os.kill(pid, signal.SIGKILL)


def test_a_flow_that_ends_leaves_another_s_processes_alone(tmp_path: Path) -> None:
    with process_scope():
        kept = Process("sleep", [*PYTHON, "import time; time.sleep(99)"], tmp_path / "log")

        def other_flow() -> Process:
            with process_scope():
                process = Process("sleep", [*PYTHON, "import time; time.sleep(99)"], tmp_path / "log2")
            return process

        ended: list[Process] = []
        thread = threading.Thread(target=lambda: ended.append(other_flow()))
        thread.start()
        thread.join()
        assert not ended[0].is_alive
        assert kept.is_alive and not is_closing()
    assert not kept.is_alive
