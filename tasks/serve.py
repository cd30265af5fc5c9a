"""Serve a model that is named by an address: ``python -m tasks.serve --model models:/lewis-speaker@champion …``.

All arguments are those of ``python -m lewis_core.listener``; ``--model`` may also be an address of MLflow's registry,
or a ModelRef whose path or adapter is one. Downloads go to ``--models`` (default: ``runs/models``).
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lewis_core.errors import LewisError
from lewis_core.listener.__main__ import main as serve
from lewis_core.listener.__main__ import read_model_ref
from tasks.models import resolve_models

EXIT_WRONG = 2


def main(arguments: Sequence[str]) -> int:
    """Resolve the model and serve it; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tasks.serve",
        description="Serve a model that is named by an address.",
        epilog="All other arguments are those of python -m lewis_core.listener, which needs --image-root and --port.",
        allow_abbrev=False,  # of arguments that are passed on
    )
    parser.add_argument("--model", required=True, help="address of MLflow's registry, or as for lewis_core.listener")
    parser.add_argument("--models", type=Path, default=Path("runs/models"), help="folder of downloads (%(default)s)")
    parser.add_argument("--tracking-uri", default=os.environ.get("MLFLOW_TRACKING_URI", ""), help="MLflow's address")
    options, rest = parser.parse_known_args(arguments)
    try:
        ref = resolve_models(read_model_ref(options.model), options.tracking_uri, options.models.absolute())
    except LewisError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return EXIT_WRONG
    return serve(["--model", ref.model_dump_json(), *rest])


if __name__ == "__main__":
    exit_status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(exit_status)  # a model that is busy in native code would abort an ordinary end
