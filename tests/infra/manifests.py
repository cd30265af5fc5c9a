"""Reads what infra/ holds, as the programs that it is for would."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
PASSWORDS = {"POSTGRES_PASSWORD": "p", "LISTENER_TOKEN": "t", "GRAFANA_PASSWORD": "g"}


def interpolate(text: str, env: Mapping[str, str]) -> str:
    """Replace ``${NAME:-default}`` and ``${NAME:?why}`` as compose does; a missing name is an error."""

    def value(match: re.Match[str]) -> str:
        name, operator, rest = match.groups()
        if env.get(name):
            return env[name]
        if operator == ":-":
            return str(rest)
        raise KeyError(rest or name)

    return re.sub(r"\$\{(\w+)(?:(:-|:\?)([^}]*))?\}", value, text)


def compose_file(name: str, env: Mapping[str, str] = PASSWORDS) -> dict[str, Any]:
    """A compose file with its variables replaced."""
    found: dict[str, Any] = yaml.safe_load(interpolate((INFRA / "compose" / name).read_text(encoding="utf-8"), env))
    return found


def kubernetes_resources() -> dict[str, dict[str, Any]]:
    """All resources of the kustomization, by kind and name."""
    kustomization = yaml.safe_load((INFRA / "kubernetes/kustomization.yaml").read_text(encoding="utf-8"))
    found = {}
    for file in kustomization["resources"]:
        for resource in yaml.safe_load_all((INFRA / "kubernetes" / file).read_text(encoding="utf-8")):
            found[f"{resource['kind']}/{resource['metadata']['name']}"] = resource
    return found


def job_template(kind: str) -> dict[str, Any]:
    """Base job template of a type of work pool."""
    found: dict[str, Any] = json.loads((INFRA / f"work_pools/{kind}.json").read_text(encoding="utf-8"))
    return found


def pod_specs(resources: Mapping[str, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Specs of all pods that resources make."""
    for name, resource in resources.items():
        if "template" in resource.get("spec", {}):
            yield name, resource["spec"]["template"]["spec"]


def dashboard() -> dict[str, Any]:
    """The Grafana dashboard."""
    found: dict[str, Any] = json.loads((INFRA / "grafana/dashboards/lewis.json").read_text(encoding="utf-8"))
    return found
