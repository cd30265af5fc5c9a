"""The command line: settings in, one line of JSON or one line of error out."""

import importlib
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import httpx
import pytest
from pydantic import BaseModel

from flows.__main__ import as_line, main
from flows.commands import FLOWS
from flows.settings import load_data_settings, load_settings, read_values
from flows.terminal import EXIT_SETTINGS
from lewis_core.config.pipeline import PipelineConfig
from lewis_core.errors import ConfigError, OrchestrationError
from tasks.prefect_server import prefect_server_needed
from tasks.services import free_port

ROOT = Path(__file__).parents[2]
POCKET = ROOT / "deployments/settings/pocket.toml"


def problem(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(POCKET, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "section", "field", "value"),
    [
        ("training.max_steps=7", "training", "max_steps", 7),
        ("games.num_candidates = 4", "games", "num_candidates", 4),
        ("run.name=other", "run", "name", "other"),
        ('run.name="1.5"', "run", "name", "1.5"),
        ("run.force=['train-speaker']", "run", "force", ("train-speaker",)),
    ],
)
def test_overrides_are_toml_values(override: str, section: str, field: str, value: object) -> None:
    assert getattr(getattr(load_settings(POCKET, [override]), section), field) == value


def test_an_override_reaches_deep_and_keeps_its_neighbours() -> None:
    config = load_settings(POCKET, ["training.model.prompts=instruct"])
    assert config.training.model.prompts == "instruct"
    assert config.training.model.path == load_settings(POCKET).training.model.path


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.max_stepps=3", "unknown setting training.max_stepps; did you mean training.max_steps?"),
        ("trainning.max_steps=3", "unknown setting trainning; did you mean training?"),
        ("training.model.pth=x", "unknown setting training.model.pth; did you mean training.model.path?"),
        ("source.world.sead=3", "unknown setting source.world.sead; did you mean source.world.seed?"),
        ("source.root=x", "source.root is a setting of another source.type than 'pocket'; set source.type as well"),
        ("evaluation.vqa.shw=both", "unknown setting evaluation.vqa.shw; did you mean evaluation.vqa.show?"),
        ("qqq=3", "unknown setting qqq"),
        ("max_steps=3", "unknown setting max_steps; did you mean training.max_steps or listener_training.max_steps?"),
        (
            "evaluation.independent=x",
            "evaluation.independent is a section: expected path, revision, ",
        ),
        ("games.num_candidates=1", "games.num_candidates: Input should be greater than or equal to 2, found 1"),
        ("training.max_steps", "--set training.max_steps: expected section.key=value"),
        ("run.name.x=1", "--set run.name.x=1: 'name' is a value, not a section"),
    ],
)
def test_a_wrong_setting_is_named_in_full(override: str, expected: str) -> None:
    assert expected in problem(override)


def test_a_setting_of_several_types_has_one_problem() -> None:
    said = problem('evaluation.controls=["blind", "no-imag"]')
    assert said.startswith("evaluation.controls.1: Input should be 'always-A', ")
    assert said.endswith("found 'no-imag'")
    assert said.count("found") == 1
    twice = problem("training.model.max_pixels=x", "training.listener.max_pixels=x")
    assert twice.count("found 'x'") == 2, "two settings with the same mistake are two problems"


def test_a_missing_setting_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text('[source]\ntype = "pocket"\n')
    with pytest.raises(ConfigError, match="setting training is missing; setting evaluation is missing"):
        load_settings(tmp_path / "x.toml")


def test_data_are_prepared_without_settings_of_training_or_evaluation(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(f'[source]\ntype = "folder"\nroot = "{tmp_path}"\n')
    config = load_data_settings(tmp_path / "x.toml")
    assert (config.training, config.evaluation) == (None, None)
    assert load_data_settings(POCKET).model_dump() == load_settings(POCKET).model_dump(), "one file serves all flows"
    with pytest.raises(ConfigError, match=r"setting training\.model is missing"):
        load_data_settings(tmp_path / "x.toml", ["training.max_steps=3"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["full-pipeline", "/no/such.toml"], "settings file /no/such.toml cannot be read: No such file"),
        (["full-pipeline", str(ROOT)], "cannot be read: Is a directory"),
        (
            ["full-pipeline", str(POCKET), "--set", 'source={type="folder", root="/no/photos"}'],
            "source.root: there is no folder /no/photos",
        ),
        (
            ["full-pipeline", str(POCKET), "--set", "training.listener.path=/no/model"],
            "training.listener.path: there is no model folder /no/model",
        ),
        (
            ["full-pipeline", str(POCKET), "--set", "evaluation.answering.path=pocket:bse"],
            "evaluation.answering.path: no embedded checkpoint 'pocket:bse'; there are pocket:base",
        ),
        (
            ["full-pipeline", str(POCKET), "--set", "training.model.adapter=/no/adapter"],
            "training.model.adapter: there is no adapter folder /no/adapter",
        ),
        (
            ["full-pipeline", str(POCKET), "--set", "training.model.path=~/no/such/model"],
            "training.model.path: there is no model folder ~/no/such/model",
        ),
        (
            ["full-pipeline", str(POCKET), "--set", "encoder.model=local-dir:/no/clip"],
            "encoder.model: encoder 'local-dir:/no/clip': /no/clip is not an open_clip folder",
        ),
        (["full-pipeline", str(POCKET), "--set", "run.force=['trian']"], "no stage is called trian"),
        (
            ["full-pipeline", str(POCKET), "--set", f"run.work_dir={__file__}/runs"],
            "run.work_dir: " + __file__ + "/runs cannot be a folder here: Not a directory; name another",
        ),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == EXIT_SETTINGS
    output = capsys.readouterr()
    assert output.out == ""
    assert expected in output.err
    assert output.err.count("\n") == 1


def test_a_file_that_is_not_toml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("[run\n")
    with pytest.raises(ConfigError, match=r"x\.toml is not TOML"):
        load_settings(tmp_path / "x.toml")


def test_a_prefect_server_that_is_not_there_is_said_in_one_line(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/api"
    command = [sys.executable, "-m", "flows", "prepare-data", str(POCKET), "--set", f"run.work_dir={tmp_path}"]
    env = {**os.environ, "PREFECT_API_URL": url}
    ended = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert (ended.returncode, ended.stdout) == (EXIT_SETTINGS, "")
    assert ended.stderr.startswith(f"settings: no Prefect server answers at {url} (ConnectError: ")
    assert ended.stderr.count("\n") == 1


def test_paths_in_the_last_line_can_be_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    result: dict[str, object] = {"report": Path("/läufe/report.html")}
    for encoding, written in (
        ("utf-8", '{"report": "/läufe/report.html"}'),
        ("ascii", r'{"report": "/l\u00e4ufe/report.html"}'),
    ):
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
        assert as_line(result) == written


@pytest.mark.parametrize("words", [["--help"], ["iterate", "--help"]])
def test_help_is_instant(words: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "flows", *words]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "iterate" in shown.stdout
    loaded = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
    assert "flows" in loaded
    assert not loaded & {"torch", "prefect", "mlflow", "transformers", "pydantic", "numpy"}


def settings_of(flow: str) -> type[BaseModel]:
    name = flow.replace("-", "_")
    kind: type[BaseModel] = get_type_hints(getattr(importlib.import_module(f"flows.{name}"), name).fn)["config"]
    return kind


@pytest.mark.parametrize("flow", FLOWS)
def test_every_flow_has_a_help_page_of_its_own(flow: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([flow, "--help"])
    page = capsys.readouterr().out
    assert ended.value.code == 0
    assert f"python -m flows {flow} deployments/settings/" in page
    command, tables = FLOWS[flow], settings_of(flow).model_fields
    assert " ".join(page.split()).count(command.story) == 1
    assert set(command.reads) <= set(tables)
    assert f"[{command.reads[-1]}]" in page
    needed = {name for name, field in tables.items() if field.is_required()}
    assert needed <= set(command.needs), "a file without these is refused"
    settings_of(flow).model_validate(read_values(ROOT / command.example.split()[0], []))


def test_every_table_is_read_by_some_flow() -> None:
    read = {table for command in FLOWS.values() for table in command.reads}
    assert set(PipelineConfig.model_fields) <= read


def test_an_unknown_flow_is_named_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["prepare-dat", str(POCKET)])
    assert "'prepare-dat'" in (said := capsys.readouterr().err)
    assert "'prepare-data'" in said


def test_a_prefect_server_that_goes_away_is_said_in_one_line() -> None:
    with (
        pytest.raises(OrchestrationError, match=r"went away \(ConnectError: refused\); start it"),
        prefect_server_needed(),
    ):
        raise httpx.ConnectError("refused")
    request = httpx.Request("POST", "http://127.0.0.1/api")
    with pytest.raises(OrchestrationError, match=r"answers 500.*PREFECT_HOME"), prefect_server_needed():
        raise httpx.HTTPStatusError("failed", request=request, response=httpx.Response(500))
    with pytest.raises(httpx.HTTPStatusError), prefect_server_needed():
        raise httpx.HTTPStatusError("failed", request=request, response=httpx.Response(404))
    with pytest.raises(ZeroDivisionError), prefect_server_needed():
        raise ZeroDivisionError
