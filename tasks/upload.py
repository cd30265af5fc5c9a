"""Send to MLflow what runs could not send: ``python -m tasks.upload runs/pocket …``.

Runs keep what they have to say in journals in their work folder. What was sent once is not sent again, and runs that
still run are left alone. The last line on standard output is one JSON object; exit status 1: MLflow is still away.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from tasks.logs import arrange_logs
from tasks.tracking import upload_journals


def main(arguments: Sequence[str]) -> int:
    """Upload; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tasks.upload", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("work_dirs", nargs="+", type=Path, metavar="work-dir", help="run.work_dir of the settings")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    arrange_logs()
    total = {"sent": 0, "refused": 0, "unsent_journals": 0}
    for folder in options.work_dirs:
        if not (folder / "logs").is_dir():
            parser.error(f"{folder} is no work folder: it holds no folder logs")
        for name, count in upload_journals(folder / "logs").items():
            total[name] += count
    sys.stdout.write(json.dumps(total) + "\n")
    return 1 if total["unsent_journals"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
