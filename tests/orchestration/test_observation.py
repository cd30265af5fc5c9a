"""What a running stage tells the outside: structured log lines, numbers for Prometheus, one id for everything."""

import json
import logging
import socket
from pathlib import Path

import httpx
import pytest
from prefect import flow

from lewis_core import correlation
from lewis_core.config.pipeline import MonitoringConfig, PipelineConfig
from lewis_core.correlation import JsonLines, new_request_id, set_run
from lewis_core.listener.http import request_id_of
from lewis_core.stages import Stage
from tasks.events import core_line
from tasks.prometheus import RunGauges
from tasks.run import pipeline_run
from tasks.services import free_port
from tests.orchestration.stand_ins import CountConfig

COUNT = Stage("count", "tests.orchestration.stand_ins:count", isolated=True)


@pytest.fixture(autouse=True)
def nobody_s_process() -> None:
    set_run("")


def test_requests_of_a_run_carry_its_id_and_services_take_it() -> None:
    assert len(new_request_id()) == 16
    set_run("0b36c5a4-6f3f-4fd0-9be4-6a4f0f5b6d61")
    first, second = new_request_id(), new_request_id()
    assert first != second
    for given in (first, second):
        assert given.startswith("0b36c5a4-6f3f-4fd0-9be4-6a4f0f5b6d61.")
        assert request_id_of({b"x-request-id": given.encode()}) == given
    set_run("")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("12:00:00 INFO lewis_core.training.speaker: step 3", (logging.INFO, "step 3")),
        ('{"time": "t", "level": "WARNING", "logger": "tasks.launch", "message": "m"}', (logging.WARNING, "m")),
        ('{"time": "t", "level": "DEBUG", "logger": "tasks.launch", "message": "m"}', None),
        ('{"time": "t", "level": "INFO", "logger": "httpx", "message": "m"}', None),
        ('{"time": "t", "level": "LOUD", "logger": "tasks", "message": "m"}', None),
        ('{"time": cut', None),
        ("12:00:00 INFO httpx: GET", None),
        ("Traceback", None),
    ],
)
def test_our_own_log_lines_are_read_in_both_forms(line: str, expected: tuple[int, str] | None) -> None:
    assert core_line(line) == expected


def test_a_structured_line_says_whose_it_is() -> None:
    set_run("run-1", stage="train-speaker")
    try:
        raise ValueError("bad")
    except ValueError as error:
        made = logging.LogRecord("a.b", logging.ERROR, "f", 1, "%d things", (3,), (ValueError, error, None))
    line = json.loads(JsonLines().format(made))
    assert (line["level"], line["logger"], line["message"]) == ("ERROR", "a.b", "3 things")
    assert (line["run_id"], line["stage"]) == ("run-1", "train-speaker")
    assert line["time"].endswith("Z") and "ValueError: bad" in line["traceback"]
    assert correlation.run_id() == "run-1"


def test_numbers_are_in_a_text_file_while_a_run_is_under_way(tmp_path: Path) -> None:
    gauges = RunGauges(MonitoringConfig(textfile_dir=tmp_path / "prom"), "pocket", "id-1", "full-pipeline")
    gauges.metrics("train-speaker", "", {"reward": 0.25, "rewards/format": 1.0}, 7)
    gauges.progress("train-speaker", "", 7, 60, "steps")
    gauges.finished("count", "", 1.5)
    text = (tmp_path / "prom/lewis-id-1.prom").read_text()
    where = 'label="",metric="reward",run="pocket",run_id="id-1",stage="train-speaker"'
    assert f"lewis_stage_metric{{{where}}} 0.25" in text
    assert 'lewis_stage_step{label="",run="pocket",run_id="id-1",stage="train-speaker"} 7.0' in text
    assert 'lewis_stage_total{label="",run="pocket",run_id="id-1",stage="train-speaker",unit="steps"} 60.0' in text
    assert 'lewis_run_info{flow="full-pipeline",run="pocket",run_id="id-1"} 1.0' in text
    gauges.close()
    assert list((tmp_path / "prom").iterdir()) == []


def test_numbers_are_served_while_a_run_is_under_way(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    gauges = RunGauges(MonitoringConfig(port=port), "pocket", "id-1", "full-pipeline")
    gauges.metrics("train-speaker", "", {"reward": 0.5}, 1)
    answer = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False)
    assert 'metric="reward"' in answer.text
    second = RunGauges(MonitoringConfig(port=port), "other", "id-2", "full-pipeline")
    second.close()
    assert f"no metrics at 127.0.0.1:{port}: Address already in use" in caplog.text
    gauges.close()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_by_default_nobody_is_told() -> None:
    gauges = RunGauges(MonitoringConfig(), "pocket", "id-1", "full-pipeline")
    gauges.metrics("train-speaker", "", {"reward": 0.5}, 1)
    gauges.progress("train-speaker", "", 1, 2, "steps")
    gauges.finished("train-speaker", "", 1.0)
    gauges.close()


@pytest.mark.usefixtures("prefect_server")
def test_one_id_goes_through_flow_and_child_process(config: PipelineConfig, tmp_path: Path) -> None:
    told = config.run.model_copy(update={"log_format": "json"})

    @flow(name="observed")
    def observed() -> str:
        with pipeline_run(config.model_copy(update={"run": told}), "observed") as run:
            run.stage(COUNT, config=CountConfig(log=str(tmp_path / "computed.log")))
            return run.id

    run_id = observed()
    logs = config.run.work_dir / "logs"
    spec = json.loads(next(logs.glob("count-*.json")).read_text())
    assert (spec["run_id"], spec["log_format"]) == (run_id, "json")
    lines = [json.loads(line) for line in (logs / f"run-{run_id}.jsonl").read_text().splitlines()]
    assert {line["run_id"] for line in lines} == {run_id}
    assert any("count: done in" in line["message"] for line in lines)
