"""Entry of the child process in which an isolated stage runs: ``python -m tasks.launch spec.json``.

The spec holds the stage's name, the store, its arguments and runtime values, as JSON. Events go to standard output
(:class:`~lewis_core.reporting.StreamReporter`); a ``failure`` event tells the parent which error ended the stage.
Started by ``accelerate launch`` for training: only the main process locks and publishes, the others run the same
function with a scratch output folder.
"""

import json
import logging
import os
import sys
import tempfile
import traceback
import typing
from collections.abc import Mapping
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, validate_call

from lewis_core.artifacts import ArtifactStore
from lewis_core.correlation import TEXT, LogFormat, log_formatter, set_run
from lewis_core.errors import LewisError, ListenerBusyError, ListenerUnavailableError
from lewis_core.records import JsonObject, Record
from lewis_core.reporting import EVENT_PREFIX, NullReporter, StreamReporter
from lewis_core.stages import Stage, run_stage, stage_key
from lewis_core.training.processes import end_process, leave_process_group

EXIT_LISTENER_LOST = 75
"""EX_TEMPFAIL: the same command can go on where it stopped once the listener is back."""


class LaunchSpec(Record):
    """What a child process has to run."""

    stage: str
    """Name of the stage."""
    function: str
    """Where it lives, ``package.module:function``."""
    asks: tuple[str, ...] = ()
    """Modules behind the model service that it asks."""
    key: str
    """Its identity as the flow computed it."""
    store: Path
    """Root of the artifact store."""
    arguments: JsonObject
    """What identifies the stage, as JSON."""
    runtime: JsonObject
    """Folders, device and service address, as JSON."""
    run_id: str = ""
    """The run that it is for; in its log lines and requests."""
    log_format: LogFormat = "text"
    """Form of its log lines."""


def typed_arguments(stage: Stage, arguments: JsonObject) -> dict[str, object]:
    """Turn JSON arguments into the types that the stage's function declares, so that its identity is the same.

    Raises:
        LewisError: If an artifact among them is gone or was changed.
    """
    hints = typing.get_type_hints(stage.load())
    return {name: TypeAdapter(hints[name]).validate_python(value) for name, value in arguments.items()}


def check_key(stage: Stage, spec: LaunchSpec, arguments: Mapping[str, object]) -> None:
    """Check that this process would compute what the flow asked for.

    Raises:
        LewisError: If source, a model or an input was changed since the flow looked at it.
    """
    if (found := stage_key(stage, arguments)) != spec.key:
        raise LewisError(
            f"{stage.name}: the source (or a model's files) changed while the flow was running: expected {spec.key}, "
            f"found {found}; run the command again"
        )


def run_main_process(stage: Stage, spec: LaunchSpec) -> None:
    """Run the stage and publish its artifact."""
    arguments = typed_arguments(stage, spec.arguments)
    check_key(stage, spec, arguments)
    run_stage(stage, ArtifactStore(spec.store), arguments, spec.runtime, StreamReporter())


def run_other_process(stage: Stage, spec: LaunchSpec) -> None:
    """Take part in the main process' work without publishing anything."""
    arguments = typed_arguments(stage, spec.arguments)
    check_key(stage, spec, arguments)
    work_dir = ArtifactStore(spec.store).work_dir(stage.name, spec.key)
    function = stage.load()
    with tempfile.TemporaryDirectory(prefix="lewis-rank-") as scratch:
        supplied = {"output_dir": Path(scratch), "work_dir": work_dir, "reporter": NullReporter(), **spec.runtime}
        wanted = {name: value for name, value in supplied.items() if name in typing.get_type_hints(function)}
        validate_call(config=ConfigDict(arbitrary_types_allowed=True))(function)(**arguments, **wanted)


def report_failure(error: BaseException) -> None:
    """Tell the parent which error ended the stage, ours or an unexpected one; the traceback goes to the log."""
    traceback.print_exception(error)
    is_ours = isinstance(error, LewisError)
    report({"event": "failure" if is_ours else "crash", "error": type(error).__name__, "message": str(error)})


def report(event: JsonObject) -> None:
    """Tell the parent something about this process."""
    sys.stdout.write(f"{EVENT_PREFIX}{json.dumps(event)}\n")
    sys.stdout.flush()


def main(spec_path: Path) -> int:
    """Run the stage that a spec file names; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format=TEXT, datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("lewis_core.reporting").setLevel(logging.WARNING)  # the parent shows progress itself
    for chatty in ("httpx", "httpcore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    report({"event": "started"})
    try:
        spec = LaunchSpec.model_validate_json(spec_path.read_text(encoding="utf-8"))
        stage = Stage(spec.stage, spec.function, isolated=True, asks=spec.asks)
        set_run(spec.run_id, stage=stage.name, stage_key=spec.key)
        logging.getLogger().handlers[0].setFormatter(log_formatter(spec.log_format))
        is_main = int(os.environ.get("RANK", "0")) == 0
        if not is_main:
            logging.getLogger("lewis_core").setLevel(logging.WARNING)  # the main process says what all of them do
        run = run_main_process if is_main else run_other_process
        run(stage, spec)
        leave_process_group()
    except (ListenerUnavailableError, ListenerBusyError) as error:  # seen by all processes at the same point
        report_failure(error)
        leave_process_group()
        return EXIT_LISTENER_LOST
    except SystemExit as ending:  # after SIGTERM and a saved checkpoint, by all processes
        return ending.code if isinstance(ending.code, int) else 1
    except Exception as error:  # noqa: BLE001 - told to the parent, which can tell it from a kill then
        report_failure(error)
        return 1
    return 0


if __name__ == "__main__":
    end_process(main(Path(sys.argv[1])))
