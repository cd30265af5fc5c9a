"""How training is started on one machine or several, and which services it asks."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from flows.rounds import check_rounds
from flows.settings import load_settings
from lewis_core import pipeline
from lewis_core.config.base import ModelRef, Runtime
from lewis_core.config.grpo import DistributedConfig
from lewis_core.config.pipeline import PipelineConfig
from lewis_core.config.training import ListenerRewardConfig, RewardsConfig, TrainSpeakerConfig
from lewis_core.errors import ConfigError, ListenerUnavailableError
from lewis_core.listener.client import HttpModel
from lewis_core.listener.schemas import Readiness
from lewis_core.models.adapters import describe_ref
from tasks import join, replicas
from tasks.policy import policy_of
from tasks.replicas import ExternalService, Replicas
from tasks.run import PipelineRun
from tasks.stage import launch_command
from tasks.training_launch import (
    DEEPSPEED,
    Announcement,
    Machine,
    accelerate_command,
    announce,
    check_machines,
    deepspeed_file,
    dismiss,
    launcher_environment,
    this_machine,
)

ADAPTER = "ca3d163bab055381-ca3d163bab055381"
INFRA = Path(__file__).parents[2] / "infra"
STRATEGIES = ("ddp", "zero2", "zero2_offload", "zero3", "zero3_offload")


def settings(**changes: Any) -> TrainSpeakerConfig:
    model = ModelRef(path="pocket:base")
    return TrainSpeakerConfig.model_validate({"model": model, "listener": model, **changes})


def command(config: TrainSpeakerConfig, machine: Machine = Machine(), has_gpu: bool = True) -> list[str]:
    return accelerate_command(config, Runtime(torch_threads=3), ["tasks.launch", "spec.json"], machine, has_gpu=has_gpu)


def option(arguments: list[str], name: str) -> str:
    return arguments[arguments.index(name) + 1]


def test_one_machine_needs_no_address() -> None:
    found = command(settings(num_processes=4))
    assert option(found, "--num_processes") == "4"
    assert option(found, "--main_process_port") == "0"
    assert "--multi_gpu" in found
    assert "--machine_rank" not in found
    assert found[-3:] == ["-m", "tasks.launch", "spec.json"]
    assert "--multi_gpu" not in command(settings())
    assert "--cpu" in command(settings(), has_gpu=False)


def test_several_machines_meet_at_the_first_ones_address() -> None:
    config = settings(num_processes=4, distributed=DistributedConfig(num_machines=2, strategy="zero3"))
    environment = {"MAIN_ADDRESS": "gpu-1", "SLURM_NODEID": "1", "MAIN_PORT": "1234"}
    found = command(config, this_machine(environment, 2))
    assert (option(found, "--machine_rank"), option(found, "--main_process_ip")) == ("1", "gpu-1")
    assert (option(found, "--main_process_port"), option(found, "--num_machines")) == ("1234", "2")
    assert option(found, "--zero3_init_flag") == "true"
    assert option(found, "--deepspeed_config_file").endswith("infra/deepspeed/zero3.json")
    with pytest.raises(ConfigError, match="set MAIN_ADDRESS"):
        this_machine({}, 2)
    with pytest.raises(ConfigError, match="MAIN_PORT is 'many', which is no number"):
        this_machine({"MAIN_ADDRESS": "gpu-1", "MAIN_PORT": "many"}, 2)
    assert this_machine({}, 1) == Machine()


def test_a_listener_of_several_machines_is_served_where_all_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(num_processes=2, distributed=DistributedConfig(num_machines=2))
    with pytest.raises(ConfigError, match="set MAIN_ADDRESS"):
        check_machines(config, {}, {"listener": ("http://gpu-1:9000",)})
    environment = {"MAIN_ADDRESS": "gpu-1"}
    with pytest.raises(ConfigError, match=r"serve it by hand and name it in run\.services\.listener"):
        check_machines(config, environment, {})
    with pytest.raises(ConfigError, match=r"http://127\.0\.0\.1:9000 in run\.services\.listener is this machine alone"):
        check_machines(config, environment, {"listener": ("http://127.0.0.1:9000#token",)})
    check_machines(config, environment, {"listener": ("http://gpu-1:9000",)})
    with pytest.raises(ConfigError, match=r"in run\.services\.listener-1, .*listener-2 \(run\.services has listener\)"):
        check_machines(config, environment, {"listener": ("http://gpu-1:9000",)}, ["listener-1", "listener-2"])
    unasked = config.model_copy(update={"rewards": RewardsConfig(listener=ListenerRewardConfig(weight=0))})
    check_machines(unasked, environment, {})
    check_machines(settings(), {}, {})


def test_rounds_on_several_machines_are_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def rounds(machines: int, services: list[str]) -> PipelineConfig:
        more = ["training.num_processes=2", f"training.distributed.num_machines={machines}"]
        named = [f'run.services.{role}=["http://gpu-1:9000"]' for role in services]
        return load_settings(INFRA.parent / "deployments/settings/pocket_iterate.toml", more + named)

    monkeypatch.setenv("MAIN_ADDRESS", "gpu-1")
    with pytest.raises(ConfigError, match=r"name it in run\.services\.listener-2 \(run\.services has listener-1\)"):
        check_rounds(rounds(2, ["listener-1"]))
    check_rounds(rounds(2, ["listener-1", "listener-2"]))
    assert not caplog.text
    check_rounds(rounds(1, ["listener"]))
    assert "run.services.listener is not asked in rounds" in caplog.text
    monkeypatch.delenv("MAIN_ADDRESS")
    check_rounds(rounds(1, []))
    config = rounds(1, [])
    assert config.listener_training is not None
    alone = {"num_processes": 2, "distributed": DistributedConfig(num_machines=2)}
    listener = config.listener_training.model_copy(update=alone)
    with pytest.raises(ConfigError, match="set MAIN_ADDRESS"):
        check_rounds(config.model_copy(update={"listener_training": listener}))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_files_for_use_by_hand_say_what_the_product_does(strategy: str) -> None:
    by_hand = yaml.safe_load((INFRA / "accelerate" / f"{strategy}.yaml").read_text(encoding="utf-8"))
    found = command(settings(num_processes=8, distributed=DistributedConfig.model_validate({"strategy": strategy})))
    assert by_hand["num_processes"] == 8
    if strategy == "ddp":
        assert by_hand["distributed_type"] == "MULTI_GPU"
        assert "--use_deepspeed" not in found
        return
    assert by_hand["deepspeed_config"]["deepspeed_config_file"] == f"infra/deepspeed/{strategy}.json"
    assert str(by_hand["deepspeed_config"]["zero3_init_flag"]).lower() == option(found, "--zero3_init_flag")
    settings_of = json.loads((DEEPSPEED / f"{strategy}.json").read_text(encoding="utf-8"))
    zero = settings_of["zero_optimization"]
    assert not settings_of["timers"]["throughput"]["enabled"]  # it would wait for the GPU before every forward pass
    assert zero["stage"] == int(strategy[4])
    assert ("offload_optimizer" in zero) == strategy.endswith("offload")


def test_an_adapter_under_zero2_waits_for_no_exchange_beside_its_backward_pass() -> None:
    whole = settings(full_finetuning=True, beta=0.0, distributed=DistributedConfig(strategy="zero2"))
    adapter = settings(distributed=DistributedConfig(strategy="zero2"))
    found = [json.loads(deepspeed_file(config).read_text(encoding="utf-8")) for config in (whole, adapter)]
    assert [one["zero_optimization"].pop("overlap_comm") for one in found] == [True, False]
    assert found[0] == found[1]
    assert option(command(adapter), "--deepspeed_config_file") == str(deepspeed_file(adapter))


def test_the_launcher_gives_its_processes_as_much_time_to_end_as_it_has() -> None:
    config = pytest.importorskip("torch.distributed.launcher.api").LaunchConfig
    with pytest.MonkeyPatch.context() as patch:
        for name, value in launcher_environment(119.5).items():
            patch.setenv(name, value)
        assert config(1, 1, 1, run_id="-").shutdown_timeout == 120


def test_other_machines_find_each_start_once(tmp_path: Path) -> None:
    first = Announcement("train-speaker", "logs/train-1.json", "gpu-1", 29500, None, "a", 120.0)
    file = announce(tmp_path / "rendezvous", first)
    assert join.waiting(tmp_path / "rendezvous", set()) == first
    assert join.waiting(tmp_path / "rendezvous", {"a"}) is None
    announce(
        tmp_path / "rendezvous", Announcement("train-speaker", "logs/train-1.json", "gpu-1", 29500, None, "b", 120.0)
    )
    found = join.waiting(tmp_path / "rendezvous", {"a"})
    assert found is not None
    assert found.attempt == "b"
    file.write_text("{", encoding="utf-8")
    assert join.waiting(tmp_path / "rendezvous", set()) is None


def test_other_machines_leave_when_a_run_has_ended_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "logs" / "rendezvous"
    dismiss(folder, "of one machine")
    assert not folder.exists()
    folder.mkdir(parents=True)
    dismiss(folder, "an earlier run")
    looks = iter([lambda: None, lambda: dismiss(folder, "this run")])
    monkeypatch.setattr("time.sleep", lambda _: next(looks)())  # a third look would fail
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert join.main([str(tmp_path), "--machine-rank", "1", "--device", "cpu", "--until-run-ends"]) == 0
    assert next(looks, None) is None


class Fixed:
    """A service that is always there."""

    def __init__(self, url: str) -> None:
        self.url, self.stopped = url, False

    def ensure(self) -> str:
        """Its address."""
        return self.url

    def stop(self) -> None:
        """Remember."""
        self.stopped = True


def test_replicas_are_one_service_with_several_addresses() -> None:
    parts: list[Any] = [Fixed("http://a:1"), Fixed("http://b:2")]
    together = Replicas(parts)
    assert together.ensure() == "http://a:1,http://b:2"
    together.stop()
    assert all(part.stopped for part in parts)


def test_services_of_others_have_to_be_ready(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    ref = ModelRef(path="some/model")
    service = ExternalService("listener", ["http://127.0.0.1:9", "http://127.0.0.1:10"], ref)
    with pytest.raises(ListenerUnavailableError, match=r"none of the services in run\.services\.listener is ready"):
        service.ensure()
    trained = ExternalService("listener-2", ["http://127.0.0.1:9"], ref.model_copy(update={"adapter": Path("a b")}))
    with pytest.raises(ListenerUnavailableError, match=r"""--model '{"path":"some/model","adapter":"a b"}' …"""):
        trained.ensure()
    answers = [None, Readiness(status="ready", model="another/model", detail="", vision_cache=None)]
    monkeypatch.setattr(HttpModel, "readiness", lambda self: answers)
    assert service.ensure() == "http://127.0.0.1:9,http://127.0.0.1:10"
    assert "http://127.0.0.1:9 is not ready (no answer of a model service)" in caplog.text
    assert "serves another/model, the settings say some/model" in caplog.text


@pytest.mark.parametrize(
    ("served", "message"),
    [
        pytest.param({"path": "a/2B"}, "its name = '2B' instead of 'model'", id="base"),
        pytest.param({"prompts": "concise"}, "prompts = 'concise' instead of 'instruct'", id="prompts"),
        pytest.param({"max_pixels": 12_544}, "max_pixels = 12544 instead of 401408", id="pixels"),
        pytest.param(
            {"adapter": ADAPTER}, "adapter = 'ca3d163bab055381-ca3d163bab055381' instead of None", id="adapter"
        ),
    ],
)
def test_a_service_with_another_model_than_the_settings_name_is_refused(
    monkeypatch: pytest.MonkeyPatch, served: dict[str, Any], message: str
) -> None:
    """Else its answers would be kept as another model's."""
    here = ModelRef(path="some/model")
    serves = describe_ref(here).model_copy(update=served)
    told = Readiness(status="ready", model=serves.path, serves=serves)
    monkeypatch.setattr(HttpModel, "readiness", lambda self: [told])
    with pytest.raises(ConfigError, match=re.escape(message)):
        ExternalService("listener", ["http://127.0.0.1:9"], here).ensure()


def test_a_service_that_is_still_loading_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    here, clock = ModelRef(path="some/model"), [0.0]
    ready, loading = (Readiness(status=status, model="some/model") for status in ("ready", "loading"))
    told = [[None], [loading], [loading], [ready]]

    def sleep(seconds: float) -> None:
        clock[0] += 8 * seconds

    monkeypatch.setattr(replicas, "is_closing", lambda: False)
    monkeypatch.setattr(replicas, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    monkeypatch.setattr(HttpModel, "readiness", lambda self: told.pop(0))
    assert ExternalService("listener", ["http://gpu-1:9000"], here, ready_s=1800).ensure() == "http://gpu-1:9000"
    told += [[None]] * 9
    with pytest.raises(ListenerUnavailableError, match="no answer"):
        ExternalService("listener", ["http://gpu-1:9000"], here, ready_s=1800).ensure()
    assert len(told) == 5  # two minutes, and no longer
    away = ExternalService("listener", ["http://gpu-1:9000"], here, ready_s=1800)
    told[:] = [[None]] * 5
    for _ in range(2):
        with pytest.raises(ListenerUnavailableError, match="no answer"):
            away.ensure()
    assert told == [], "another try looks once, and does not wait two minutes again"
    told[:] = [[loading], [None], [ready]]
    assert away.ensure() == "http://gpu-1:9000"
    told[:] = [[Readiness(status="failed", model="some/model")]]
    with pytest.raises(ListenerUnavailableError, match="failed"):
        ExternalService("listener", ["http://gpu-1:9000"], here, ready_s=1800).ensure()


def test_people_find_the_newest_result_by_its_name(tmp_path: Path) -> None:
    run: Any = SimpleNamespace(work_dir=tmp_path)
    for key in ("a", "b"):
        folder = tmp_path / "store" / key / "adapter"
        folder.mkdir(parents=True)
        (folder / "key").write_text(key)
        link = PipelineRun.name_result(run, "base_GRPO_lewis_mugs_seed_0_r4_a8", folder)
        assert (link / "key").read_text() == key
    assert sorted(path.name for path in (tmp_path / "trained").iterdir()) == [link.name]
    assert str(link.readlink()) == "../store/b/adapter"  # the work folder can be moved


def test_only_training_itself_takes_several_processes(tmp_path: Path) -> None:
    arguments = {"config": settings(num_processes=2)}
    check = launch_command(pipeline.CHECK_TRAINING, arguments, Runtime(), tmp_path / "spec.json")
    assert check[1:] == ["-m", "tasks.launch", str(tmp_path / "spec.json")]
    train = launch_command(pipeline.TRAIN_SPEAKER, arguments, Runtime(), tmp_path / "spec.json")
    assert option(train, "--num_processes") == "2"


def test_a_training_that_was_killed_is_tried_again_whoever_is_trained() -> None:
    for stage in (pipeline.TRAIN_SPEAKER, pipeline.TRAIN_LISTENER):
        assert policy_of(stage).retry_delays_s == (2.0, 10.0, 30.0)
    assert policy_of(pipeline.CHECK_LISTENER_TRAINING).retry_delays_s == ()
