"""Copies settings/pocket.toml into the parameters of deployments/prefect.yaml: ``python infra/sync_deployments.py``.

A deployment's parameters have to be written out, and a test makes sure that they are those of the settings file.
"""

import tomllib
from pathlib import Path

import yaml

DEPLOYMENTS = Path(__file__).resolve().parents[1] / "deployments"
START, END = "  parameters: &pocket\n", "\ndeployments:\n"


def main() -> None:
    """Rewrite the block between the anchor and the list of deployments."""
    file = DEPLOYMENTS / "prefect.yaml"
    head, _, rest = file.read_text(encoding="utf-8").partition(START)
    tail = rest.partition(END)[2]
    settings = tomllib.loads((DEPLOYMENTS / "settings/pocket.toml").read_text(encoding="utf-8"))
    block = yaml.safe_dump({"config": settings}, sort_keys=False, default_flow_style=None, width=110)
    indented = "".join(f"    {line}\n" for line in block.splitlines())
    file.write_text(f"{head}{START}{indented}{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
