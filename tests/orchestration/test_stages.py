"""Stages as Prefect tasks: cache, damage, force, retries, errors, tracking."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from prefect import flow

from lewis_core import stages
from lewis_core.artifacts import ArtifactRef
from lewis_core.config.base import ModelRef, Runtime
from lewis_core.config.evaluation import SpeakerRef
from lewis_core.config.gpus import GpuConfig
from lewis_core.config.pipeline import PipelineConfig
from lewis_core.errors import CatalogError, KilledError, LewisError, ProcessError
from lewis_core.stages import Stage
from tasks.gpus import GpuPool
from tasks.run import pipeline_run
from tasks.services import ModelService
from tasks.stage import short, without_launcher
from tests.orchestration.stand_ins import CountConfig, stand_in_command

COUNT = Stage("count", "tests.orchestration.stand_ins:count")
DOUBLE = Stage("double", "tests.orchestration.stand_ins:double", isolated=True)
pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """File with a line for every computation."""
    return tmp_path / "computed.log"


@flow(name="stand-in")
def count_and_double(config: PipelineConfig, log: str, number: int = 3) -> dict[str, object]:
    """Two stages, the second in a process of its own."""
    with pipeline_run(config, "stand-in") as run:
        settings = CountConfig(number=number, log=log)
        counted = run.stage(COUNT, config=settings)
        doubled = run.stage(DOUBLE, label="it", source=counted, config=settings)
        return {"ref": doubled, "run_id": run.tracker.run_id, "uri": run.tracker.uri, **run.facts()}


def computed(log: Path) -> list[str]:
    return log.read_text().split() if log.exists() else []


def test_a_second_run_computes_nothing(config: PipelineConfig, log: Path) -> None:
    first = count_and_double(config, str(log))
    ref = first["ref"]
    assert isinstance(ref, ArtifactRef)
    assert ref.summary == {"number": 6}
    assert first["cache_hits"] == 0
    assert set(first["wall_s"]) == {"count", "double it", "total"}
    second = count_and_double(config, str(log))
    assert (second["ref"], second["cache_hits"], second["computed"]) == (ref, 2, 0)
    assert computed(log) == ["count", "double"]


def test_other_settings_are_another_result(config: PipelineConfig, log: Path) -> None:
    count_and_double(config, str(log), number=3)
    assert count_and_double(config, str(log), number=4)["ref"].summary == {"number": 8}
    assert computed(log) == ["count", "double"] * 2


@pytest.mark.parametrize("harm", ["delete", "truncate", "folder"])
def test_a_damaged_output_is_made_again_and_nothing_else(config: PipelineConfig, log: Path, harm: str) -> None:
    ref = count_and_double(config, str(log))["ref"]
    file = ref.path / "number.txt"
    match harm:
        case "delete":
            file.unlink()
        case "truncate":
            file.write_text("")
        case "folder":
            ref.path.rename(ref.path.with_name("elsewhere"))
    again = count_and_double(config, str(log))["ref"]
    assert computed(log) == ["count", "double", "double"]
    assert again.file("number.txt").read_text() == "6"


def test_a_lost_prefect_cache_costs_nothing(config: PipelineConfig, log: Path) -> None:
    count_and_double(config, str(log))
    for file in (config.run.work_dir / "results").iterdir():
        file.unlink()
    assert count_and_double(config, str(log))["cache_hits"] == 2
    assert computed(log) == ["count", "double"]


def test_force_runs_the_named_stage_again(config: PipelineConfig, log: Path) -> None:
    count_and_double(config, str(log))
    forced = config.model_copy(update={"run": config.run.model_copy(update={"force": ("count",)})})
    count_and_double(forced, str(log))
    # the same number again has the same digest, so the second stage is still good
    assert computed(log) == ["count", "double", "count"]


def test_two_work_folders_share_nothing(config: PipelineConfig, log: Path, tmp_path: Path) -> None:
    count_and_double(config, str(log))
    other = config.model_copy(update={"run": config.run.model_copy(update={"work_dir": tmp_path / "other"})})
    ref = count_and_double(other, str(log))["ref"]
    assert ref.path.is_relative_to(tmp_path / "other")


@pytest.mark.parametrize("isolated", [False, True])
def test_an_error_on_purpose_is_not_retried_and_keeps_its_class(
    config: PipelineConfig, log: Path, isolated: bool
) -> None:
    @flow
    def refusing() -> None:
        with pipeline_run(config, "refusing") as run:
            run.stage(
                Stage("refuse", "tests.orchestration.stand_ins:refuse", isolated), config=CountConfig(log=str(log))
            )

    with pytest.raises(CatalogError, match="no photos in /somewhere; put some there"):
        refusing()
    assert computed(log) == ["refuse"]
    assert not [path for path in (config.run.work_dir / "store").glob("refuse/*") if path.is_dir()]


@pytest.mark.parametrize("isolated", [False, True])
def test_a_lost_service_is_started_again_and_the_stage_retried(
    config: PipelineConfig, log: Path, tmp_path: Path, isolated: bool
) -> None:
    function = "tests.orchestration.stand_ins:lose_listener_once"
    stage = Stage("ask", function, isolated, asks=("tests.orchestration.stand_ins",))  # only these are tried again

    @flow
    def losing() -> ArtifactRef:
        with pipeline_run(config, "losing") as run:
            service = ModelService("listener", stand_in_command, tmp_path / "service.log", ready_s=20.0)
            service.ensure()
            assert service._process is not None
            service._process.ask_to_end()  # it dies before the first attempt and is started for it
            return run.stage(stage, service=service, config=CountConfig(log=str(log)))

    assert losing().file("ok.txt").read_text() == "ok"
    urls = computed(log)
    assert len(urls) == 2
    assert all(url.startswith("http://127.0.0.1:") for url in urls)


def test_a_stage_that_was_killed_goes_on(config: PipelineConfig, log: Path) -> None:
    stage = Stage(
        "survive",
        "tests.orchestration.stand_ins:be_killed_once",
        isolated=True,
        asks=("tests.orchestration.stand_ins",),
    )

    @flow
    def surviving() -> ArtifactRef:
        with pipeline_run(config, "surviving") as run:
            return run.stage(stage, config=CountConfig(log=str(log)))

    assert surviving().file("ok.txt").read_text() == "ok"
    assert computed(log) == ["killed", "killed"]


def test_source_that_changes_while_a_flow_runs_is_said(
    config: PipelineConfig, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = stages.source_digest

    def digest_of_yesterday(*modules: str) -> str:
        return f"yesterday {digest(*modules)}"

    @flow
    def outdated() -> None:
        with pipeline_run(config, "outdated") as run:
            counted = run.stage(COUNT, config=CountConfig(log=str(log)))
            monkeypatch.setattr(stages, "source_digest", digest_of_yesterday)  # the child reads what is there today
            run.stage(DOUBLE, source=counted, config=CountConfig(log=str(log)))

    with pytest.raises(LewisError, match=r"changed while the flow was running: .*run the command again"):
        outdated()
    assert computed(log) == ["count"]


def test_a_stage_that_takes_too_long_is_ended(config: PipelineConfig, log: Path) -> None:
    hurried = config.model_copy(update={"run": config.run.model_copy(update={"stage_timeout_s": 2.0})})

    @flow
    def hanging() -> None:
        with pipeline_run(hurried, "hanging") as run:
            stage = Stage("hang", "tests.orchestration.stand_ins:hang", isolated=True)
            run.stage(stage, config=CountConfig(log=str(log)))

    with pytest.raises(ProcessError, match="it ran longer than 2 s"):
        hanging()
    if log.exists():  # a slow machine may not have come that far
        assert not psutil.pid_exists(int(log.read_text()))


def test_two_identical_runs_at_once_do_the_work_once(config: PipelineConfig, log: Path) -> None:
    """The second waits for the first and takes its result."""

    @flow(name="same")
    def same() -> dict[str, object]:
        with pipeline_run(config, "same") as run:
            stage = Stage("slow", "tests.orchestration.stand_ins:count_slowly", isolated=True)
            return {"ref": run.stage(stage, config=CountConfig(log=str(log))), **run.facts()}

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: same(), range(2))
    assert first["ref"] == second["ref"]
    assert sorted([first["computed"], second["computed"]]) == [0, 1]
    assert log.read_text() == "count slowly\n"


def test_a_stage_sees_the_gpus_that_it_was_given_and_no_others(
    config: PipelineConfig, log: Path, tmp_path: Path
) -> None:
    """The other GPU is in use; the name of the stage says that it computes on one."""
    gpus = GpuConfig(ids=(4, 5), lock_dir=tmp_path / "gpus")
    run_config = config.run.model_copy(update={"gpus": gpus, "runtime": Runtime(device="cuda")})
    stage = Stage("embed-images", "tests.orchestration.stand_ins:see_gpus", isolated=True)

    @flow(name="seeing")
    def seeing() -> None:
        with pipeline_run(config.model_copy(update={"run": run_config}), "seeing") as run:
            run.stage(stage, config=CountConfig(log=str(log)))

    with GpuPool(gpus, is_used=True).lease(1, "another run") as taken:
        seeing()
    assert (taken, log.read_text()) == (("4",), "5\n")


def test_runs_are_tracked_and_nested(config: PipelineConfig, log: Path) -> None:
    from mlflow import MlflowClient

    result = count_and_double(config, str(log))
    client = MlflowClient(str(result["uri"]))
    parent = client.get_run(str(result["run_id"]))
    assert parent.info.status == "FINISHED"
    assert parent.data.params["games.num_candidates"] == "3"
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    by_stage = {child.data.tags["stage"]: child for child in children}
    assert {name: child.info.status for name, child in by_stage.items()} == {"count": "FINISHED", "double": "FINISHED"}
    assert by_stage["count"].data.metrics["loss"] == 0.5
    assert by_stage["double"].data.metrics["loss"] == 0.25  # from the child process
    assert by_stage["double"].data.metrics["number"] == 6
    second = client.get_run(str(count_and_double(config, str(log))["run_id"]))
    assert second.data.tags["cached.00"] == "count"
    assert second.data.metrics["cache_hits"] == 2


def test_an_outage_of_the_tracking_server_does_not_end_a_run(config: PipelineConfig, log: Path) -> None:
    tracking = config.run.tracking.model_copy(update={"uri": "sqlite:////proc/no/such/folder/mlflow.db"})
    blind = config.model_copy(update={"run": config.run.model_copy(update={"tracking": tracking})})
    result = count_and_double(blind, str(log))
    assert (result["run_id"], result["computed"]) == (None, 2)
    events = next((config.run.work_dir / "logs").glob("events-*.jsonl")).read_text()
    assert '"metrics": {"loss": 0.5}' in events


@pytest.mark.parametrize(("device", "expected"), [("cpu", "float32"), ("cuda", "bfloat16")])
def test_automatic_precision_is_decided_before_a_stage_sees_it(
    config: PipelineConfig, device: str, expected: str
) -> None:
    said = ModelRef(path="pocket:base", dtype="float32")
    evaluation = config.evaluation.model_copy(
        update={"independent": said, "speakers": (SpeakerRef(name="other", model=ModelRef(path="pocket:base")),)}
    )
    run = config.run.model_copy(update={"runtime": Runtime(device=device)})
    with pipeline_run(config.model_copy(update={"run": run, "evaluation": evaluation}), "precision") as opened:
        found = opened.config
    assert (found.training.model.dtype, found.training.listener.dtype) == (expected, expected)
    assert (found.evaluation.answering.dtype, found.evaluation.speakers[0].model.dtype) == (expected, expected)
    assert found.evaluation.independent == said


def test_runs_in_different_work_folders_may_share_what_they_know(config: PipelineConfig, tmp_path: Path) -> None:
    from tasks.stage import StageCall, runtime_values

    with pipeline_run(config, "shared") as run:
        assert "cache_dir" not in runtime_values(StageCall(run))
    shared = config.run.model_copy(update={"cache_dir": tmp_path / "shared"})
    with pipeline_run(config.model_copy(update={"run": shared}), "shared") as run:
        assert runtime_values(StageCall(run))["cache_dir"] == tmp_path / "shared"
        known = Stage("know", "tests.orchestration.stand_ins:know", isolated=True)

        @flow
        def ask() -> ArtifactRef:
            return run.stage(known, config=CountConfig(log=str(tmp_path / "log")))

        ask()
    assert (tmp_path / "shared" / "known.txt").read_text() == "1"


def test_a_killed_training_is_told_without_the_traceback_of_its_launcher() -> None:
    own = ["step 3"]
    launcher = [
        "Traceback (most recent call last):",
        '  File "accelerate/commands/launch.py", line 999, in simple_launcher',
        "subprocess.CalledProcessError: Command '['python', '-m', 'tasks.launch']' died with <Signals.SIGKILL: 9>.",
    ]
    assert without_launcher(1, [*own, *launcher]) == (137, own)
    assert without_launcher(1, launcher[1:]) == (137, launcher[1:2])
    assert without_launcher(3, own) == (3, own)
    assert without_launcher(3, []) == (3, [])
    said = str(KilledError("train-speaker", 137, own))
    assert said.startswith("train-speaker ended with exit status 137 (SIGKILL: if nobody killed it, the machine had no")
    assert str(KilledError("train-speaker", 143)) == "train-speaker ended with exit status 143 (SIGTERM)"
    assert str(KilledError("train-speaker", 1)) == "train-speaker ended with exit status 1"


def test_the_line_of_a_finished_stage_holds_counts_only() -> None:
    summary = {"concepts": 6, "share": 2 / 3, "verdict": "", "missing": None, "side_sha256": "ab" * 32, "ids": ["a"]}
    assert short(summary) == "concepts 6, share 0.6667"
    assert short({"quarantined": 0, "accuracy": 0.0, "is_best": False}) == "accuracy 0, is_best False"
    assert short({"ids": []}) == "its numbers are in its folder"
    line = short({f"count_{number}": number for number in range(1, 101)})
    assert len(line) <= 400
    assert line.endswith(", …"), "cut between two counts"
