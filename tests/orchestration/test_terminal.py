"""What a person at a terminal reads when a run ends early: one message, once, as the last thing."""

import importlib
import io
import logging
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect import flow
from prefect.logging.formatters import PrefectFormatter
from prefect.logging.handlers import PrefectConsoleHandler

from flows import __main__ as command_line
from flows.terminal import EXIT_FAILED, EXIT_INTERRUPTED, Brief, Stopping, brief_logs, tell_failure
from lewis_core.config.pipeline import PipelineConfig
from lewis_core.errors import CatalogError, ListenerUnavailableError, StorageError
from lewis_core.stages import Stage
from tasks.logs import RunLog
from tasks.run import pipeline_run
from tests.orchestration.stand_ins import CountConfig

REFUSE = Stage("refuse", "tests.orchestration.stand_ins:refuse")
ROOT = Path(__file__).parents[2]
SAID = "no photos in /somewhere; put some there"


@pytest.fixture
def shown() -> Iterator[io.StringIO]:
    """What a terminal gets of Prefect's log."""
    screen = io.StringIO()
    handler = PrefectConsoleHandler(screen)
    form = "%(levelname)s | {} - %(message)s"
    handler.setFormatter(
        PrefectFormatter(form.format("log"), flow_run_fmt=form.format("flow"), task_run_fmt=form.format("task"))
    )
    logging.getLogger().addHandler(handler)
    yield screen
    logging.getLogger().removeHandler(handler)


@pytest.mark.usefixtures("prefect_server")
def test_an_error_of_a_stage_is_said_once_and_its_traceback_is_in_the_log(
    config: PipelineConfig, tmp_path: Path, shown: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    @flow(name="refusing")
    def refusing() -> None:
        with pipeline_run(config, "refusing") as run:
            run.stage(REFUSE, config=CountConfig(log=str(tmp_path / "computed.log")))

    with brief_logs():
        state = refusing(return_state=True)
    assert state.is_failed()
    assert SAID in str(state.message), "Prefect is told everything"
    error = state.result(raise_on_failure=False)
    assert isinstance(error, CatalogError)
    assert tell_failure("refusing", error, is_verbose=False) == EXIT_FAILED
    last = capsys.readouterr().err
    [log] = (config.run.work_dir / "logs").glob("run-*.log")
    assert last == f"refusing failed: CatalogError: {SAID}\ndetails: {log}\n"
    assert "ERROR | task - failed (CatalogError)" in shown.getvalue()
    for repeated in (SAID, "Traceback", "Finished in state Failed"):
        assert repeated not in shown.getvalue()
    written = log.read_text(encoding="utf-8")
    assert "in refuse\n" in written
    assert written.count("Traceback") == 2, "of the task, and of what ended the run"


@pytest.mark.usefixtures("prefect_server")
def test_an_interrupted_run_is_no_crash_on_the_terminal(config: PipelineConfig, shown: io.StringIO) -> None:
    @flow(name="interrupted", on_crashed=[lambda *_: None])
    def interrupted() -> None:
        with pipeline_run(config, "interrupted"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), brief_logs():
        interrupted()
    assert "Beginning flow run" in shown.getvalue()
    for alarm in ("Crash", "hook", "Hook", "Finished"):
        assert alarm not in shown.getvalue()


@pytest.mark.parametrize(("number", "by"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_stopped_command_says_what_is_kept_and_how_to_go_on(
    number: signal.Signals, by: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(_settings: Path, _overrides: list[str], invocation: command_line.Invocation) -> dict[str, object]:
        invocation.resume = "All is kept"
        os.kill(os.getpid(), number)
        return {}

    monkeypatch.setattr(command_line, "run_flow", begin)
    usual = {signal.SIGINT: signal.default_int_handler}.get(number, signal.SIG_DFL)
    before = signal.signal(number, usual)  # these tests may run in a shell's background, which ignores SIGINT
    try:
        assert command_line.main(["prepare-data", "x.toml"]) == EXIT_INTERRUPTED
        assert signal.getsignal(number) is usual
    finally:
        signal.signal(number, before)
    said = capsys.readouterr()
    assert said.err == f"prepare-data was stopped by {by}; all that it had started has ended. All is kept\n"
    assert said.out == ""


def test_who_does_not_wait_is_not_told_that_all_has_ended() -> None:
    stopping = Stopping()
    stopping.signals = [signal.SIGINT, signal.SIGINT]
    assert "all that it had started is being ended" in stopping.sentence("describe", "")


def record(message: str, *values: object, level: int = logging.INFO) -> logging.LogRecord:
    made = logging.LogRecord("prefect.task_runs", level, "", 0, message, values, None)
    made.task_run_id = "1"
    return made


def lines(*records: logging.LogRecord) -> list[str]:
    brief = Brief(logging.Formatter("%(levelname)s %(message)s"))
    return [brief.format(each) for each in records if brief.filter(each)]


def test_an_error_that_is_tried_to_be_overcome_is_explained_once() -> None:
    form, error = "Task run failed with %s: %r - Retry %s/%s", ListenerUnavailableError("nobody answers; start it")
    assert lines(record(form, "exception", error, 1, 2), record(form, "exception", error, 2, 2)) == [
        "INFO Task run failed with exception: ListenerUnavailableError: nobody answers; start it - Retry 1/2",
        "INFO Task run failed with exception: ListenerUnavailableError as before - Retry 2/2",
    ]


def test_a_task_that_ended_without_an_error_of_its_own_is_still_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.terminal.is_closing", lambda: False)
    ended = record("Finished in state Failed('because of\nanother')", level=logging.ERROR)
    assert lines(ended, record("Finished in state Completed()")) == [
        "ERROR Finished in state Failed",
        "INFO Finished in state Completed()",
    ]


def test_what_is_stopped_with_the_run_has_not_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.terminal.is_closing", lambda: True)
    assert lines(record("Finished in state Failed('exit status 143')", level=logging.ERROR)) == [
        "INFO stopped, as the run ends"
    ]


def test_a_package_that_is_not_installed_is_no_defect(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        importlib.import_module("lewis_has_no_such_package.part")
    except ModuleNotFoundError as error:
        assert tell_failure("describe", error, is_verbose=False) == EXIT_FAILED
    said = capsys.readouterr().err
    assert said.startswith("describe failed: the Python that runs this")
    for told in (sys.executable, "'lewis_has_no_such_package'", "source .venv/bin/activate"):
        assert told in said
    assert "defect" not in said
    assert "Traceback" not in said
    with pytest.raises(ModuleNotFoundError) as own:
        importlib.import_module("flows.no_such_part")
    tell_failure("describe", own.value, is_verbose=False)
    assert "defect" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["flows", "lewis_core.listener", "tasks.serve", "lewis_core.training.export"])
def test_a_python_that_was_not_set_up_says_so_in_a_sentence(module: str) -> None:
    bare = [sys.executable, "-S", "-m", module, "--help"]  # without the folder of installed packages
    done = subprocess.run(bare, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"{sys.executable}, has no package 'pydantic'" in done.stderr


def test_a_defect_is_shown_with_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        traceback.format_list(3)  # type: ignore[arg-type]
    except TypeError as error:
        assert tell_failure("describe", error, is_verbose=False) == EXIT_FAILED
    said = capsys.readouterr().err
    assert said.count("Traceback") == 1
    assert "\ndescribe failed: TypeError: 'int' object is not iterable\nThis should not happen" in said


def test_where_the_details_are_is_known_of_an_error_with_another_name(capsys: pytest.CaptureFixture[str]) -> None:
    full = OSError("full")
    full.add_note("details: run.log")
    error = StorageError("no space is left")
    error.__cause__ = full
    tell_failure("describe", error, is_verbose=True)
    said = capsys.readouterr().err
    assert "Traceback" not in said.rpartition("describe failed")[2]
    assert said.endswith("describe failed: StorageError: no space is left\ndetails: run.log\n")
    assert said.startswith("OSError: full\ndetails: run.log\n\nThe above exception")


def test_a_log_that_cannot_be_written_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    handler = RunLog("/dev/full")
    for _ in range(2):
        handler.handle(record("done"))
    handler.close()
    assert [each.getMessage() for each in caplog.records] == [
        "the run's log /dev/full cannot be written: [Errno 28] No space left on device"
    ]
