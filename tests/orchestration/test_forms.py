"""What Prefect's UI makes its parameter forms from: every setting has a title, a text and a place, and can be shown."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.utilities.schema_tools import validate
from prefect.utilities.schema_tools.validation import ValidationError

from flows.commands import FLOWS
from lewis_core.config.base import title_of
from lewis_core.pipeline import STAGES
from tasks.hooks import HOOKS

ROOT = Path(__file__).parents[2]
FORM_TYPES = {"string", "integer", "number", "boolean", "array", "object", "null"}


def schema_of(flow_name: str) -> dict[str, Any]:
    name = flow_name.replace("-", "_")
    schema: dict[str, Any] = getattr(importlib.import_module(f"flows.{name}"), name).parameters.model_dump()
    return schema


def settings_in(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, setting, and the definition that it refers to (or itself)."""
    for owner, definition in schema["definitions"].items():
        for name, setting in definition.get("properties", {}).items():
            reference = setting.get("$ref", "").rpartition("/")[2]
            yield f"{owner}.{name}", setting, schema["definitions"].get(reference, setting)


@pytest.mark.parametrize("flow", FLOWS)
def test_every_setting_can_be_shown_and_says_what_it_is(flow: str) -> None:
    schema = schema_of(flow)
    found = list(settings_in(schema))
    assert len(found) > 5
    for name, setting, definition in found:
        assert setting.get("title") or definition.get("title"), name
        assert setting.get("description") or definition.get("description"), f"{name} has no docstring"
        assert "oneOf" not in setting, f"{name}: forms show alternatives as anyOf only"
        kinds = setting.get("anyOf", [setting])
        assert all("$ref" in kind or kind.get("type") in FORM_TYPES for kind in kinds), name
        assert sum("enum" in kind or "const" in kind for kind in kinds) <= 1, f"{name}: write one Literal"


@pytest.mark.parametrize("flow", FLOWS)
def test_settings_are_shown_in_the_order_of_the_file_that_documents_them(flow: str) -> None:
    for name, definition in schema_of(flow)["definitions"].items():
        places = [setting["position"] for setting in definition.get("properties", {}).values()]
        assert places == list(range(len(places))), name


def test_stages_to_run_again_are_chosen_from_a_list() -> None:
    force = schema_of("full-pipeline")["definitions"]["RunConfig"]["properties"]["force"]
    assert force["items"]["enum"] == list(STAGES)


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("stage_timeout_s", "Stage timeout (s)"),
        ("vision_cache_mib", "Vision cache (MiB)"),
        ("max_quarantine_frac", "Max quarantine (share)"),
        ("num_generations", "Number of generations"),
        ("lora", "LoRA"),
        ("r", "R"),
        ("s", "S"),
    ],
)
def test_titles(name: str, title: str) -> None:
    assert title_of(name) == title


@pytest.mark.parametrize(
    ("place", "value", "complaint"),
    [
        pytest.param(("training", "max_steps"), 0, "less than the minimum", id="too-small"),
        pytest.param(("training", "max_steps"), "many", "is not of type 'integer'", id="wrong-type"),
        pytest.param(("training", "max_step"), 3, "Additional properties are not allowed", id="unknown-name"),
        pytest.param(("source", "type"), "pictures", "is not valid under any of the given schemas", id="wrong-kind"),
        pytest.param(("run", "force"), ["train-speakr"], "is not one of", id="no-such-stage"),
    ],
)
def test_the_server_refuses_wrong_parameters_before_anything_runs(
    place: tuple[str, str], value: object, complaint: str
) -> None:
    content = yaml.safe_load((ROOT / "deployments/prefect.yaml").read_text(encoding="utf-8"))
    parameters: dict[str, Any] = content["definitions"]["settings"]["pocket"]
    schema = schema_of("full-pipeline")
    validate(parameters, schema, raise_on_error=True)
    section, key = place
    changed = {**parameters["config"], section: {**parameters["config"][section], key: value}}
    with pytest.raises(ValidationError, match=complaint):
        validate({"config": changed}, schema, raise_on_error=True)


@pytest.mark.parametrize("flow", FLOWS)
def test_a_run_that_is_tracked_is_closed_by_others_if_it_cannot_do_it(flow: str) -> None:
    module = importlib.import_module(f"flows.{flow.replace('-', '_')}")
    hooks = getattr(module, flow.replace("-", "_")).on_crashed_hooks
    assert hooks == (HOOKS["on_crashed"] if hasattr(module, "pipeline_run") else [])
