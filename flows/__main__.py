"""The command line: ``python -m flows <flow> <settings.toml> [--set section.key=value ...]``.

``python -m flows compare <run> <run>`` and its options are in :mod:`flows.compare`.
"""

import argparse
import contextlib
import functools
import importlib
import json
import logging
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flows.commands import FLOWS, OUTPUT, WIDTH, advise
from flows.terminal import EXIT_INTERRUPTED, Stopping, brief_logs, tell_failure
from lewis_core.storage import naming_storage_errors

if TYPE_CHECKING:
    from lewis_core.config.pipeline import RunSettings

COMPARE = "compare"


class Help(argparse.RawDescriptionHelpFormatter):
    """Help pages in which the longest name has its text beside it."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=WIDTH)


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser; one flow's own page is in its sub-parser."""
    parser = argparse.ArgumentParser(
        prog="python -m flows",
        description="Run a flow.",
        epilog=f"{OUTPUT} What a flow does and reads: python -m flows FLOW --help",
        formatter_class=Help,
    )
    flows = parser.add_subparsers(dest="flow", required=True, metavar="flow", title="flows")
    for name, command in FLOWS.items():
        own = flows.add_parser(
            name,
            help=command.summary,
            description=textwrap.fill(command.story, WIDTH, break_on_hyphens=False),
            epilog=advise(name),
            formatter_class=Help,
        )
        own.add_argument(
            "settings", type=Path, help="TOML file; those that come with the project: deployments/settings"
        )
        own.add_argument(
            "--set",
            dest="overrides",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="change one setting, e.g. --set run.work_dir=runs/other (repeat for more)",
        )
        own.add_argument(
            "--verbose", action="store_true", help="show Prefect's whole log, and the traceback of an error"
        )
    flows.add_parser(COMPARE, help=f"put finished runs into one report: {COMPARE} RUN RUN ...", add_help=False)
    return parser


@dataclass
class Invocation:
    """One command, not yet run."""

    name: str
    run: "Callable[[Invocation], dict[str, object]]"
    is_verbose: bool = False
    """Whether Prefect's log is shown in full, and every traceback."""
    resume: str = "The same command begins anew"
    """What the same command does after an interruption."""


def run_flow(settings: Path, overrides: Sequence[str], invocation: Invocation) -> dict[str, object]:
    """Read the settings and run a flow; returns its result.

    Raises:
        LewisError: What is wrong with the settings, or what ended the flow.
    """
    name = invocation.name
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
    invocation.resume = f"What was finished is kept in {config.run.work_dir}: the same command goes on where it stopped"
    logs = contextlib.nullcontext() if invocation.is_verbose else brief_logs()
    with naming_storage_errors(work_dir), prefect_server_needed(), logs:
        make_work_dir(work_dir)
        ensure_prefect_server(work_dir / "logs" / "prefect-server.log")
        result: dict[str, object] = getattr(module, name.replace("-", "_"))(config)
    return result


def prepare(words: Sequence[str]) -> Invocation:
    """Read the command line; returns what it asks for. Ends the program if it cannot be understood."""
    if words and words[0] == COMPARE:
        from flows import compare

        compare.build_parser().parse_args(words[1:])
        return Invocation(COMPARE, lambda _: compare.compare(words[1:]))
    options = build_parser().parse_args(words)
    return Invocation(options.flow, functools.partial(run_flow, options.settings, options.overrides), options.verbose)


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
    invocation, stopping = prepare(sys.argv[1:] if argv is None else list(argv)), Stopping()
    with stopping.on_signals():
        try:
            result = invocation.run(invocation)
        except KeyboardInterrupt:
            sys.stderr.write(f"{stopping.sentence(invocation.name, invocation.resume)}\n")
            return EXIT_INTERRUPTED
        except Exception as error:  # noqa: BLE001 - told to the person at the terminal
            return tell_failure(invocation.name, error, invocation.is_verbose)
        sys.stdout.write(as_line(result) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code) if code == EXIT_INTERRUPTED else sys.exit(code)
