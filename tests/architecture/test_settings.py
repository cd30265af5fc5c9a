"""Every settings file and every deployment's parameters are valid, and say the same."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import Flow
from pydantic import BaseModel

from flows.build_pocket import PocketModelsSettings
from flows.commands import FLOWS
from flows.settings import validate, validate_as
from lewis_core.config.pipeline import PipelineConfig, ProcessDescriptionsConfig

ROOT = Path(__file__).parents[2]
SETTINGS = sorted((ROOT / "deployments/settings").glob("*.toml"))
CONTENT = yaml.safe_load((ROOT / "deployments/prefect.yaml").read_text(encoding="utf-8"))
DEPLOYMENTS: dict[str, dict[str, Any]] = {deployment["name"]: deployment for deployment in CONTENT["deployments"]}


def flow_of(deployment: dict[str, Any]) -> Flow[..., Any]:
    module, _, function = deployment["entrypoint"].partition(":")
    flow: Flow[..., Any] = getattr(importlib.import_module(module.removesuffix(".py").replace("/", ".")), function)
    return flow


def config_of(deployment: dict[str, Any]) -> type[BaseModel]:
    annotation: type[BaseModel] = flow_of(deployment).fn.__annotations__["config"]
    return annotation


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: path.name)
def test_settings_parse(path: Path) -> None:
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    if path.name.startswith("build_"):
        assert isinstance(PocketModelsSettings.model_validate(values), PocketModelsSettings)
        return
    if path.name.startswith("processing_"):
        assert isinstance(validate_as(ProcessDescriptionsConfig, values), ProcessDescriptionsConfig)
        return
    assert isinstance(validate(values), PipelineConfig)


def test_each_work_folder_is_used_by_one_settings_file() -> None:
    folders = [
        values["run"]["work_dir"]
        for path in SETTINGS
        if "run" in (values := tomllib.loads(path.read_text(encoding="utf-8")))
    ]
    assert len(set(folders)) == len(folders)


def test_deployed_parameters_are_those_of_the_settings_files() -> None:
    checked = subprocess.run(
        [sys.executable, "infra/sync_deployments.py", "--check"], cwd=ROOT, check=False, timeout=120
    )
    assert checked.returncode == 0, "run python infra/sync_deployments.py"
    for name, values in CONTENT["definitions"]["settings"].items():
        written = tomllib.loads((ROOT / f"deployments/settings/{name}.toml").read_text(encoding="utf-8"))
        assert values == {"config": written}, name


def test_the_check_sees_a_difference(tmp_path: Path) -> None:
    sync = tmp_path / "infra/sync_deployments.py"
    settings = tmp_path / "deployments/settings"
    settings.mkdir(parents=True)
    sync.parent.mkdir()
    sync.write_text((ROOT / "infra/sync_deployments.py").read_text(encoding="utf-8"), encoding="utf-8")
    for file in ("prefect.yaml", *(f"settings/{path.name}" for path in SETTINGS)):
        text = (ROOT / "deployments" / file).read_text(encoding="utf-8")
        (tmp_path / "deployments" / file).write_text(text.replace("max_steps = 60", "max_steps = 61"), encoding="utf-8")
    yaml_file = tmp_path / "deployments/prefect.yaml"
    by_hand = yaml_file.read_text(encoding="utf-8").partition("\ndeployments:\n")[2]
    assert subprocess.run([sys.executable, sync, "--check"], check=False, timeout=120).returncode == 1
    assert subprocess.run([sys.executable, sync], check=False, timeout=120).returncode == 0
    assert "max_steps: 61" in yaml_file.read_text(encoding="utf-8")
    assert yaml_file.read_text(encoding="utf-8").partition("\ndeployments:\n")[2] == by_hand


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_deployments_start_their_flow_with_settings_that_it_takes(name: str) -> None:
    deployment = DEPLOYMENTS[name]
    flow, module = flow_of(deployment), deployment["entrypoint"].partition(":")[0]
    assert flow.name in FLOWS
    assert flow.name.replace("-", "_") == flow.fn.__name__ == Path(module).stem
    assert name == flow.name or name.startswith(f"{flow.name}-")
    assert list(flow.parameters.properties) == ["config"]
    config_of(deployment).model_validate(deployment["parameters"]["config"])
    assert flow.description
    assert deployment["description"].strip()
    assert deployment["concurrency_limit"]["collision_strategy"] in {"ENQUEUE", "CANCEL_NEW"}
    assert deployment["tags"]


def test_every_flow_has_a_deployment_of_its_name() -> None:
    assert set(FLOWS) <= set(DEPLOYMENTS)


def test_only_what_is_safe_starts_by_itself() -> None:
    """A schedule that is on from the start runs on everybody's machine; those runs must never pile up."""
    for name, deployment in DEPLOYMENTS.items():
        for schedule in deployment.get("schedules", []):
            assert schedule["slug"], name
            assert deployment["concurrency_limit"]["collision_strategy"] == "CANCEL_NEW", name
