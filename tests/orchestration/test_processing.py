"""The flow that judges and refines a file of descriptions: its settings."""

from pathlib import Path

import pytest

from flows.settings import load_processing_settings
from lewis_core.errors import ConfigError

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
