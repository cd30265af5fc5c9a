"""Command line: ``python -m infra.chaos [--steps 20] [--folder DIR]``; exit status 1 if the runs differ."""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from infra.chaos.training import run


def main() -> int:
    """Run, print what happened, say whether both runs are equal."""
    parser = argparse.ArgumentParser(prog="python -m infra.chaos", description=run.__doc__)
    parser.add_argument("--steps", type=int, default=20, help="optimiser updates, at least 9")
    parser.add_argument("--folder", type=Path, help="where the runs are kept; else they are removed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lewis-chaos-") as scratch:
        found = run((arguments.folder or Path(scratch)).absolute() / "runs", arguments.steps)
    print(json.dumps(found, indent=1))
    return 0 if found["equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
