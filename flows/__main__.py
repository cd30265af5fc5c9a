"""The command line: ``python -m flows <flow> <settings.toml> [--set section.key=value ...]``.

``python -m flows compare <run> <run>`` and its options are in :mod:`flows.compare`.
"""

import argparse
import importlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from lewis_core.errors import ConfigError, LewisError
from lewis_core.storage import naming_storage_errors

if TYPE_CHECKING:
    from lewis_core.config.pipeline import RunSettings

FLOWS = {
    "full-pipeline": "everything: photos, training, evaluation, report",
    "prepare-data": "photos to the training data set",
    "train-speaker": "prepare the data and train the speaker",
    "train-listener": "prepare the data and train the listener on yes-or-no questions",
    "iterate": "rounds: train the speaker, then the listener, then the speaker against the new listener",
    "describe": "describe held-out concepts with every speaker there is",
    "evaluate": "evaluate every speaker there is and build the report",
    "reevaluate-checkpoints": "evaluate every checkpoint that was not evaluated yet, and choose the champion",
    "analyse": "look behind the evaluations: uncertainty, false claims, harder games, examples",
    "process-descriptions": "find state and location in a file of descriptions, and take them out",
    "build-pocket": "make the embedded pocket models from scratch",
}
COMPARE = "compare"
EXIT_FAILED, EXIT_SETTINGS, EXIT_INTERRUPTED = 1, 2, 130


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    lines = "\n".join(f"  {name:<24}{text}" for name, text in FLOWS.items())
    parser = argparse.ArgumentParser(
        prog="python -m flows",
        description=f"Run a flow.\n\n{lines}\n\n"
        f"  {COMPARE:<22}put finished runs into one report: {COMPARE} RUN RUN ... (see {COMPARE} --help)",
        epilog="The last line on standard output is one JSON object with the results.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("flow", choices=FLOWS, metavar="flow", help="which flow")
    parser.add_argument("settings", type=Path, help="TOML file, e.g. deployments/settings/pocket.toml")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one setting, e.g. --set training.max_steps=20 (repeat for more)",
    )
    return parser


def end_on_sigterm(_number: int, _frame: FrameType | None) -> None:
    """Unwind like Ctrl-C, so that every process is ended."""
    raise KeyboardInterrupt


def run_flow(name: str, settings: Path, overrides: Sequence[str]) -> dict[str, object]:
    """Read the settings and run a flow; returns its result.

    Raises:
        LewisError: What is wrong with the settings, or what ended the flow.
    """
    if name == "build-pocket":
        from flows.build_pocket import build_pocket, load_pocket_settings

        built: dict[str, object] = build_pocket(load_pocket_settings(settings, overrides))
        return built
    from flows.settings import load_data_settings, load_processing_settings, load_settings, make_work_dir

    own = {"process-descriptions": load_processing_settings, "prepare-data": load_data_settings}
    config: RunSettings = own.get(name, load_settings)(settings, overrides)
    from tasks.prefect_server import ensure_prefect_server, prefect_server_needed

    module = importlib.import_module(f"flows.{name.replace('-', '_')}")
    work_dir = config.run.work_dir.expanduser().absolute()
    with naming_storage_errors(work_dir), prefect_server_needed():
        make_work_dir(work_dir)
        ensure_prefect_server(work_dir / "logs" / "prefect-server.log")
        result: dict[str, object] = getattr(module, name.replace("-", "_"))(config)
    return result


def prepare(words: Sequence[str]) -> Callable[[], dict[str, object]]:
    """Read the command line; returns what it asks for, not yet done. Ends the program if it cannot be understood."""
    if words and words[0] == COMPARE:
        from flows import compare

        compare.build_parser().parse_args(words[1:])
        return lambda: compare.compare(words[1:])
    options = build_parser().parse_args(words)
    return lambda: run_flow(options.flow, options.settings, options.overrides)


def as_line(result: dict[str, object]) -> str:
    """A result as JSON on one line; paths are readable where the terminal can show their letters."""
    line = json.dumps(result, default=str, ensure_ascii=False)
    try:
        line.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return json.dumps(result, default=str)
    return line


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    name, run = words[0] if words else "", prepare(words)
    signal.signal(signal.SIGTERM, end_on_sigterm)
    try:
        result = run()
    except ConfigError as error:
        sys.stderr.write(f"settings: {error}\n")
        return EXIT_SETTINGS
    except LewisError as error:
        sys.stderr.write(f"{name} failed: {type(error).__name__}: {error}\n")
        return EXIT_FAILED
    except KeyboardInterrupt:
        sys.stderr.write(f"{name} was interrupted; the same command goes on where it stopped\n")
        return EXIT_INTERRUPTED
    sys.stdout.write(as_line(result) + "\n")
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code) if code == EXIT_INTERRUPTED else sys.exit(code)
