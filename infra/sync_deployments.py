"""Copies settings/*.toml into deployments/prefect.yaml: ``python infra/sync_deployments.py``.

A deployment says ``parameters: *pocket``; this writes what ``pocket`` stands for, from settings/pocket.toml, between
two marked lines of the file. Everything else in it is written by hand. With ``--check`` nothing is written, and the
exit status is 1 if something would be.
"""

import re
import sys
import tomllib
from pathlib import Path

import yaml

DEPLOYMENTS = Path(__file__).resolve().parents[1] / "deployments"
START = "  # From settings/*.toml by infra/sync_deployments.py; do not edit by hand.\n  settings:\n"
END = "  # End of what is written by infra/sync_deployments.py.\n"


def render(text: str) -> str:
    """Write out the settings that deployments refer to.

    Args:
        text: The file as it is.

    Returns:
        The file as it should be.

    Raises:
        ValueError: If the marked lines are missing, or a deployment refers to settings that do not exist.
    """
    head, start, rest = text.partition(START)
    _, end, tail = rest.partition(END)
    if not start or not end:
        raise ValueError("prefect.yaml has lost the lines between which settings are written")
    names = sorted(set(re.findall(r"^ +parameters: \*(\w+)$", tail, flags=re.MULTILINE)))
    return head + start + "".join(map(anchor, names)) + end + tail


def anchor(name: str) -> str:
    """One settings file as a YAML anchor.

    Raises:
        ValueError: If there is no such file.
    """
    path = DEPLOYMENTS / "settings" / f"{name}.toml"
    if not path.is_file():
        raise ValueError(f"a deployment has parameters: *{name}, but there is no {path}")
    values = {"config": tomllib.loads(path.read_text(encoding="utf-8"))}
    block = yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=110)
    return f"    {name}: &{name}\n" + "".join(f"      {line}\n" for line in block.splitlines())


def main() -> int:
    """Rewrite the file if it has to be; returns the exit status."""
    file = DEPLOYMENTS / "prefect.yaml"
    text = file.read_text(encoding="utf-8")
    wanted = render(text)
    if "--check" in sys.argv[1:]:
        return int(wanted != text)
    file.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
