"""The flow that judges and refines a file of descriptions: its settings, and a run of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.process_descriptions import process_descriptions
from flows.settings import load_processing_settings, validate_as
from lewis_core.config.pipeline import ProcessDescriptionsConfig
from lewis_core.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]
SETTINGS = ROOT / "deployments/settings/processing_pocket.toml"


def problem(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_processing_settings(SETTINGS, overrides)
    return str(caught.value)


def test_settings_name_the_file_and_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "descriptions_base.json"
    file.write_text("{}")
    config = load_processing_settings(SETTINGS, [f"processing.file={file}", "processing.refine=state"])
    assert (config.processing.file, config.processing.refine) == (file, "state")
    assert config.processing.judge.model.prompts == "concise"
    assert f"processing.file: there is no file {tmp_path}/x.json" in problem(f"processing.file={tmp_path}/x.json")
    there = f"processing.file={file}"
    assert "did you mean processing.judge.method?" in problem(there, "processing.judge.methd=json")
    assert "processing.judge.model.path: there is no model folder ./nowhere" in problem(
        there, "processing.judge.model.path=./nowhere"
    )
    assert "processing.refine: Input should be" in problem(there, "processing.refine=everything")


@pytest.mark.usefixtures("prefect_server")
def test_a_file_of_the_reference_is_judged_refined_and_judged_again(tmp_path: Path, tracking_uri: str) -> None:
    texts = {"bo": "The dog is tan. It is lying on a sofa.", "al": "The cat is black."}
    file = tmp_path / "descriptions_original_7b.json"
    content: dict[str, Any] = {
        name: {"name": name, "category": "pet", "general": ["A photo of a pet."], "distinguishing features": [text]}
        for name, text in texts.items()
    }
    file.write_text(json.dumps(content))
    config = validate_as(
        ProcessDescriptionsConfig,
        {
            "run": {"work_dir": tmp_path / "work", "tracking": {"experiment": "test", "uri": tracking_uri}},
            "processing": {"file": file, "refine": "location_and_state", "judge": {"method": "lexicon"}},
        },
    )
    result = process_descriptions(config)
    assert (result["judged"]["mean_state"], result["judged"]["mean_location"]) == (0.5, 0.5)
    assert (result["refined"]["changed"], result["judged_again"]["mean_location"]) == (1, 0)
    refined = Path(result["refined"]["path"]) / "descriptions_original_7b_location_and_state_refined.json"
    content["bo"]["distinguishing features"] = ["The dog is tan."]
    assert json.loads(refined.read_text()) == content
    assert process_descriptions(config)["computed"] == 0
    file.write_text("[]")
    with pytest.raises(DataError, match="is no file of descriptions"):
        process_descriptions(config)
