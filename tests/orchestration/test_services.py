"""Model services: lazy, waited for, restarted, always stopped."""

import sys
from pathlib import Path

import httpx
import pytest

from lewis_core.config.base import ModelRef, Runtime
from lewis_core.errors import ListenerError, ProcessError
from lewis_core.listener.__main__ import parse_arguments, read_model_ref
from tasks import services
from tasks.processes import process_scope
from tasks.services import Command, ModelService, listener_command
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
    arguments = parse_arguments(listener_command(ref, tmp_path, runtime, 9000)[3:])
    assert read_model_ref(arguments.model, arguments.engine) == ref
    assert (arguments.workers, arguments.threads, arguments.batch_size) == (3, 5, 7)
    assert (arguments.batch_tokens, arguments.compile_layers) == (4096, True)
    assert (arguments.vision_cache_mib, arguments.prompt_cache_mib) == (8, 9)
    bare = parse_arguments(listener_command(ref, tmp_path, Runtime(), 9000)[3:])
    assert (bare.batch_tokens, bare.threads, bare.compile_layers) == (None, None, False)


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
