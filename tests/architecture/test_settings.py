"""Every settings file and every deployment's parameters are valid, and say the same."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.__main__ import FLOWS
from flows.settings import validate, validate_as
from lewis_core.config.pipeline import PipelineConfig, ProcessDescriptionsConfig

ROOT = Path(__file__).parents[2]
SETTINGS = sorted((ROOT / "deployments/settings").glob("*.toml"))


def deployments() -> dict[str, dict[str, Any]]:
    content = yaml.safe_load((ROOT / "deployments/prefect.yaml").read_text(encoding="utf-8"))
    return {deployment["name"]: deployment for deployment in content["deployments"]}


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: path.name)
def test_settings_parse(path: Path) -> None:
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    if path.name.startswith("build_"):
        pytest.skip("settings of another flow")
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


def test_deployed_parameters_are_those_of_the_settings_file() -> None:
    pocket = tomllib.loads((ROOT / "deployments/settings/pocket.toml").read_text(encoding="utf-8"))
    for name, deployment in deployments().items():
        same = validate(deployment["parameters"]["config"]) == validate(pocket)
        assert same, f"{name}: run python infra/sync_deployments.py"


def test_every_deployment_is_a_flow_of_the_command_line() -> None:
    for name, deployment in deployments().items():
        module, _, function = deployment["entrypoint"].partition(":")
        assert name in FLOWS
        assert (ROOT / module).is_file()
        assert function == name.replace("-", "_") == Path(module).stem


def test_flows_take_one_parameter() -> None:
    import importlib

    for name in deployments():
        module = importlib.import_module(f"flows.{name.replace('-', '_')}")
        flow = getattr(module, name.replace("-", "_"))
        assert flow.name == name
        assert list(flow.parameters.properties) == ["config"]
        assert flow.description
