"""``python -m infra.robustness``: try faults, load and bad input; put the counts into the documentation."""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from infra.robustness import faults, pipeline, table
from infra.robustness.trial import ROOT, Results, Workshop
from tasks.processes import process_scope

PARTS = ("faults", "flows", "inputs", "load", "soak", "table")
TESTS = [f"tests/service/test_{name}.py" for name in ("fuzz", "interleaving", "hostile_images")]
COMMANDS = {
    "inputs": ["-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS],
    "load": ["-m", "infra.bench.load", "--size", "pocket"],
    "soak": ["-m", "infra.bench.load", "--size", "pocket", "--name", "soak", "--rates", "--reference-requests", "0"],
}


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m infra.robustness", description=__doc__)
    parser.add_argument("parts", nargs="+", choices=(*PARTS, "all"))
    parser.add_argument("--out", type=Path, default=Path("runs/robustness"), help="folder for trials and results")
    parser.add_argument("--kills", type=int, default=50, help="stages that are killed")
    parser.add_argument("--others", type=int, default=8, help="trials of each other fault of stages")
    parser.add_argument("--flow-kills", type=int, default=6, help="whole flows that are killed, or lose their service")
    parser.add_argument("--budget-s", type=float, default=7200.0, help="no trial begins after this many seconds")
    parser.add_argument("--examples", type=int, default=100, help="requests made from the contract, for each operation")
    parser.add_argument("--soak-s", type=float, default=1800.0, help="seconds of steady load")
    found = parser.parse_args(arguments)
    if "all" in found.parts:
        found.parts = list(PARTS)
    return found


def run_part(part: str, out: Path, options: argparse.Namespace) -> bool:
    """Run a part that is a program of its own; whether it was content."""
    out.mkdir(parents=True, exist_ok=True)
    counts = out / "inputs.jsonl"
    if part == "inputs":
        counts.unlink(missing_ok=True)
    words = COMMANDS[part] + (["--soak-s", str(options.soak_s)] if part == "soak" else [])
    words += ["--out", str(out)] if part != "inputs" else []
    variables = {"ROBUSTNESS_COUNTS": str(counts), "ROBUSTNESS_EXAMPLES": str(options.examples)}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, check=False).returncode == 0


def main(arguments: Sequence[str]) -> int:
    """Try everything that was asked for; returns 0 if nothing bad was found."""
    options = parse_arguments(arguments)
    out = options.out.absolute()
    results = Results(out / "faults.jsonl", time.monotonic() + options.budget_s)
    shop = Workshop(out)
    with process_scope():
        if {"faults", "flows"} & set(options.parts):
            shop.make_warm()
        if "faults" in options.parts:
            faults.run_all(shop, results, options.kills, options.others)
        if "flows" in options.parts:
            pipeline.run_all(shop, results, options.flow_kills)
    failed = [part for part in options.parts if part in COMMANDS and not run_part(part, out, options)]
    bad = [row for row in results.rows if not row["ok"]]
    for row in bad:
        print(f"BAD: {row}")
    if "table" in options.parts:
        table.write(out, results.rows)
    if failed:
        print(f"BAD: {', '.join(failed)}")
    return 1 if bad or failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
