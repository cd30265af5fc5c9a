"""Model services: lazy, waited for, restarted, always stopped."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from flows.training import useful_later
from lewis_core import pipeline
from lewis_core.config.base import ModelRef, Runtime
from lewis_core.config.gpus import GpuConfig
from lewis_core.config.pipeline import PipelineConfig
from lewis_core.errors import ConfigError, ListenerError, ProcessError
from lewis_core.listener.__main__ import parse_arguments, read_model_ref, read_runtime
from lewis_core.stages import Stage
from tasks import services
from tasks.gpus import GpuPool
from tasks.processes import process_scope
from tasks.run import PipelineRun
from tasks.services import Command, ModelService, listener_command
from tasks.stage import StageCall, perform_stage
from tests.orchestration.stand_ins import stand_in_command


def make(tmp_path: Path, command: Command = stand_in_command, ready_s: float = 20.0) -> ModelService:
    return ModelService("listener", command, tmp_path / "service.log", ready_s)


def is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def test_a_service_s_command_line_carries_its_settings(tmp_path: Path) -> None:
    ref = ModelRef(path="somewhere", engine="plain")
    runtime = Runtime(
        num_workers=3,
        torch_threads=5,
        batch_size=7,
        batch_tokens=4096,
        compile_layers=True,
        vision_cache_mib=8,
        prompt_cache_mib=9,
    )
    for said in (runtime, runtime.model_copy(update={"prompt_cache_mib": 0}), Runtime()):
        arguments = parse_arguments(listener_command(ref, tmp_path, said, 9000)[3:])
        assert read_model_ref(arguments.model, arguments.engine) == ref
        assert read_runtime(arguments) == said


@pytest.mark.parametrize("option", ["--prompt-cache-mib", "--vision-cache-mib", "--batch-tokens"])
def test_impossible_settings_are_refused(option: str) -> None:
    arguments = parse_arguments(["--model", "x", "--image-root", ".", "--port", "0", option, "-1"])
    with pytest.raises(ConfigError, match=f"impossible settings: (?s:.*){option[2:].replace('-', '_')}"):
        read_runtime(arguments)


TOLD = ["--prompt-cache-mib", "0"]


@pytest.mark.parametrize(
    ("stage", "cards", "number", "told"),
    [
        pytest.param(pipeline.TRAIN_SPEAKER, (0,), None, TOLD, id="beside-a-training"),
        pytest.param(pipeline.TRAIN_SPEAKER, (0,), 512, [], id="a-number-decides"),
        pytest.param(pipeline.TRAIN_SPEAKER, (0, 1), None, [], id="a-gpu-of-its-own"),
        pytest.param(pipeline.EMBED_IMAGES, (0,), None, [], id="beside-another-stage"),
    ],
)
def test_a_service_keeps_no_keys_on_a_gpu_that_trains(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    config: PipelineConfig,
    stage: Stage,
    cards: tuple[int, ...],
    number: int | None,
    told: list[str],
) -> None:
    runtime = Runtime(device="cuda", prompt_cache_mib=number)
    settings = config.model_copy(update={"run": config.run.model_copy(update={"runtime": runtime})})
    pool = GpuPool(GpuConfig(ids=cards, lock_dir=tmp_path / "gpus"), is_used=True)
    run: Any = SimpleNamespace(
        config=settings, gpus=pool, store=SimpleNamespace(root=tmp_path), log_dir=tmp_path, id="run", data_root=None
    )
    run.find = lambda *_, **__: None
    service: Any = PipelineRun._new_service(run, "listener", config.training.listener, tmp_path)
    started: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(service, "_start", lambda env, more: started.append((env["CUDA_VISIBLE_DEVICES"], list(more))))
    monkeypatch.setattr("tasks.stage.compute", lambda *_: None)
    perform_stage(stage, {"config": config.training}, StageCall(run, service=service))
    assert started == [(str(cards[-1]), told)]
    service.stop()


@pytest.mark.parametrize(("is_shared", "number", "kept"), [(True, None, False), (True, 512, True), (False, None, True)])
def test_a_service_that_had_no_room_beside_a_training_is_started_again_for_evaluations(
    config: PipelineConfig, is_shared: bool, number: int | None, kept: bool
) -> None:
    run_config = config.run.model_copy(update={"runtime": Runtime(prompt_cache_mib=number)})
    settings = config.model_copy(update={"run": run_config})
    run: Any = SimpleNamespace(config=settings, beside=lambda *a: list(a[2].values()) if is_shared else [])
    training = config.training.model_copy(update={"listener": config.evaluation.answering})
    assert (useful_later(run, training) == [config.evaluation.answering]) is kept


def test_models_are_named_or_described() -> None:
    assert read_model_ref("pocket:base") == ModelRef(path="pocket:base", prompts="concise")
    assert read_model_ref("some/hub-id", "plain") == ModelRef(path="some/hub-id", engine="plain")
    assert read_model_ref('{"path": "x", "engine": "plain"}', "shared_prefix") == ModelRef(path="x")


def test_it_starts_when_first_needed_and_is_ready_then(tmp_path: Path) -> None:
    service = make(tmp_path)
    assert not service.log.exists()
    with process_scope():
        url = service.ensure()
        assert is_up(url)
        assert service.ensure() == url
    assert not is_up(url)


def test_a_body_that_raises_stops_it(tmp_path: Path) -> None:
    urls = []
    with pytest.raises(RuntimeError, match="body"), process_scope():
        urls.append(make(tmp_path).ensure())
        raise RuntimeError("body")
    assert not is_up(urls[0])


def test_one_that_died_is_started_again(tmp_path: Path) -> None:
    with process_scope():
        service = make(tmp_path)
        first = service.ensure()
        process = service._process
        assert process is not None
        process.stop()
        assert not is_up(first)
        assert is_up(service.ensure())


def test_one_that_dies_at_start_says_why(tmp_path: Path) -> None:
    service = make(tmp_path, lambda port: [sys.executable, "-S", "-c", "raise SystemExit('no weights in /nowhere')"])
    with process_scope(), pytest.raises(ProcessError, match="no weights in /nowhere"):
        service.ensure()


def test_one_that_cannot_load_its_model_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_FAILS", "1")
    service = make(tmp_path)
    with process_scope(), pytest.raises(ListenerError, match="no weights in /nowhere"):
        service.ensure()


def test_one_that_is_never_ready_is_given_up(tmp_path: Path) -> None:
    service = make(tmp_path, lambda port: [sys.executable, "-S", "-c", "import time; time.sleep(99)"], ready_s=0.5)
    with process_scope(), pytest.raises(ListenerError, match=r"not ready after 0\.5 s"):
        service.ensure()


def test_a_taken_port_is_exchanged_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with process_scope():
        taken = int(make(tmp_path).ensure().rpartition(":")[2])
        free = services.free_port()
        ports = iter([taken, free])
        monkeypatch.setattr(services, "free_port", lambda: next(ports))
        second = ModelService("second", stand_in_command, tmp_path / "second.log", 20.0)
        assert second.ensure() == f"http://127.0.0.1:{free}"


def test_the_log_of_a_service_is_kept(tmp_path: Path) -> None:
    with process_scope():
        make(tmp_path).ensure()
    assert "GET /readyz" in (tmp_path / "service.log").read_text()
