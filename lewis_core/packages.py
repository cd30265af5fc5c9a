"""Say of a Python that the packages of this project are not installed in it. Needs the standard library only."""

import sys
from importlib.util import find_spec

EVERYWHERE = ("pydantic", "httpx", "numpy", "PIL", "torch", "transformers")
"""Packages without which no command runs; a Python that was not set up lacks one of them."""


def explain(package: str) -> str:
    """Which package is missing, where, and what to do."""
    return (
        f"the Python that runs this, {sys.executable}, has no package {package!r}, which Lewis needs. Use that of its "
        "environment: source .venv/bin/activate (bash infra/demo.sh and bash infra/test.sh make it); or install the "
        "project into this one: python -m pip install --constraint infra/constraints.txt --editable ."
    )


def explain_missing(error: BaseException) -> str | None:
    """What :func:`explain` says about an import that failed; None if something else is wrong."""
    package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    return explain(package) if package and find_spec(package) is None else None


def check_packages() -> None:
    """Refuse a Python in which nothing can run; what ends the program then is one sentence, without a traceback.

    Raises:
        ModuleNotFoundError: If a package is missing that all commands need.
    """
    for package in EVERYWHERE:
        if find_spec(package) is None:
            sys.tracebacklimit = 0
            raise ModuleNotFoundError(explain(package), name=package)
