"""Finished runs → one report. ``python -m flows compare runs/a runs/b``.

It reads what runs have left on disk and computes nothing that a server would have to know about, so it is the one
command here that is no Prefect flow: it takes seconds and works on a copied folder.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lewis_core.config.evaluation import CompareConfig
from lewis_core.errors import ConfigError
from lewis_core.records import JsonObject
from lewis_core.report.contrast import compare_runs

OUTPUT = "comparison"


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m flows compare",
        description="Compare finished runs: every speaker against a baseline on the same items, in one HTML report, "
        "and as CSV, JSON and LaTeX.",
        epilog="The last line on standard output is one JSON object with the results.",
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="run", help="work folder, folder of a report, or of one evaluation"
    )
    parser.add_argument(
        "--output", type=Path, default=Path(OUTPUT), metavar="FOLDER", help=f"where to write (default: {OUTPUT})"
    )
    parser.add_argument("--baseline", metavar="NAME", help="speaker that the others are tested against (default: base)")
    parser.add_argument(
        "--group",
        dest="groups",
        action="append",
        default=[],
        metavar="NAME=A,B",
        help="speakers that differ in the seed only (default: trainings of one recipe); repeat for more",
    )
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="the photos, if they are not where they were")
    parser.add_argument("--title", help="headline of the page")
    return parser


def compare(argv: Sequence[str]) -> JsonObject:
    """Run the command; returns its result.

    Raises:
        ConfigError: If an option cannot be understood.
        LewisError: If runs are missing, damaged or cannot be compared.
    """
    options = build_parser().parse_args(argv)
    values = {
        "runs": options.runs,
        "output": options.output.expanduser().absolute(),
        "baseline": options.baseline,
        "groups": dict(map(_read_group, options.groups)),
        "photos": options.photos.expanduser().absolute() if options.photos else None,
    }
    if options.photos and not values["photos"].is_dir():
        raise ConfigError(f"--photos: there is no folder {options.photos}")
    if options.output.expanduser().is_file():
        raise ConfigError(f"--output: {options.output} is a file; name a folder")
    config = CompareConfig(**values)
    if options.title:
        config = config.model_copy(update={"report": config.report.model_copy(update={"title": options.title})})
    return compare_runs(config)


def _read_group(text: str) -> tuple[str, tuple[str, ...]]:
    name, equals, members = text.partition("=")
    names = tuple(member.strip() for member in members.split(",") if member.strip())
    if not equals or not name.strip() or len(names) < 2:
        raise ConfigError(f"--group {text}: expected a name and two speakers or more, e.g. --group ours=seed-0,seed-1")
    return name.strip(), names
