"""What is sent to MLflow: in order, once, and later if it is away."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import _validate_metric_name
from requests import ConnectionError as RequestsConnectionError

from lewis_core.artifacts import ArtifactStore
from lewis_core.config.pipeline import TrackingConfig
from lewis_core.errors import ArtifactError
from tasks import upload
from tasks.journal import Journal, left_behind
from tasks.sending import Sender, flatten, is_refusal, metric_name
from tasks.tracking import Tracker, upload_journals


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("listener/accuracy", "listener/accuracy"),
        ("wall_s/mine-distractors/toys & games", "wall_s/mine-distractors/toys _ games"),
        ("wall_s/mine-distractors/it's (new)+", "wall_s/mine-distractors/it_s _new__"),
        ("wall_s/mine-distractors/Krüge", "wall_s/mine-distractors/Krüge"),
    ],
)
def test_metric_names_are_such_that_mlflow_takes_them(name: str, sent: str) -> None:
    assert metric_name(name) == sent
    _validate_metric_name(metric_name(name))


def test_settings_are_flattened() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": "x"}) == {"a.b": "1", "a.c": "{}", "d": "x"}


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RequestsConnectionError("refused"), False),
        (MlflowException("API request failed"), False),
        (MlflowException.invalid_parameter_value("bad name"), True),
        (FileNotFoundError("gone"), True),
        (ArtifactError("gone"), True),
        (OSError("disk"), False),
    ],
)
def test_an_outage_is_told_from_a_refusal(error: Exception, expected: bool) -> None:
    assert is_refusal(error) is expected


@pytest.fixture
def config(tracking_uri: str) -> TrackingConfig:
    return TrackingConfig(experiment="journal", uri=tracking_uri)


def test_a_registration_that_was_killed_halfway_is_finished(
    config: TrackingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version was made; its alias was not set, and nobody was told."""
    told: list[tuple[str, ...]] = []
    monkeypatch.setattr("tasks.sending.announce", lambda *words: told.append(words))
    named = config.model_copy(update={"registered_model": "halved"})
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
    with monkeypatch.context() as killed:
        killed.setattr(Sender, "_finish_registration", lambda *_: None)
        run_something(named, tmp_path / "first", adapter=tmp_path)
    client = MlflowClient(config.uri)
    assert client.get_registered_model("halved").aliases == {} and told == []
    run_something(named, tmp_path / "second", adapter=tmp_path)
    assert {name: str(number) for name, number in client.get_registered_model("halved").aliases.items()} == {
        "candidate": "1"
    }
    assert [words[:2] for words in told] == [("halved", "1")]
    assert "lewis.unfinished" not in client.get_model_version("halved", "1").tags


@pytest.fixture
def away(tracking_uri: str) -> Iterator[TrackingConfig]:
    """A tracking server that answers everything with 500."""

    class Broken(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(500)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        do_POST = do_GET  # noqa: N815

    server = HTTPServer(("127.0.0.1", 0), Broken)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield TrackingConfig(experiment="journal", uri=f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()


def run_something(config: TrackingConfig, work_dir: Path, adapter: Path | None = None) -> Tracker:
    """A run with a stage, numbers, a table, a file, and an adapter."""
    tracker = Tracker(config, work_dir, "a run", {"lewis.flow": "test"}, "test")
    (work_dir / "report.html").write_text("<html>")
    with tracker.stage("train", {"stage": "train"}) as stage:
        stage.params({"lora": {"r": 4}})
        for step in range(3):
            stage.metrics({"reward": step / 10}, step)
        stage.table("samples", [{"text": "a mug", "reward": 0.5}, {"text": "a cup", "reward": None}], 2)
        stage.artifact(work_dir / "report.html", "reports")
    if adapter is not None:
        with ArtifactStore(work_dir / "store").building("train-speaker", "k") as folder:
            (folder / "adapter").mkdir()
            for name in ("adapter_config.json", "adapter_model.safetensors"):
                (folder / "adapter" / name).write_text("{}")
            arguments = {"config": {"model": {"weights": "w"}}, "dataset": {"digest": "d"}}
            ref = ArtifactStore(work_dir / "store").publish(folder, "train-speaker", "k", arguments, "", {}, {})
        tracker.register_adapter(ref, stage.key, {"steps": 3.0}, "base_GRPO_lewis_mugs_seed_0_r4_a8")
    tracker.end("FINISHED")
    return tracker


def check(client: MlflowClient, work_dir: Path) -> None:
    """Everything that :func:`run_something` said is there, once."""
    experiment = client.get_experiment_by_name("journal")
    assert experiment is not None
    key = json.loads(next(iter(sorted(work_dir.glob("logs/events-*.jsonl")))).read_text().splitlines()[0])["run"]
    parents = client.search_runs([experiment.experiment_id], f"tags.`lewis.run_key` = '{key}'")
    assert [(run.info.run_name, run.info.status) for run in parents] == [("a run", "FINISHED")]
    children = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parents[0].info.run_id}'")
    assert [(run.info.run_name, run.info.status) for run in children] == [("train", "FINISHED")]
    run = children[0].info.run_id
    assert [(point.step, point.value) for point in client.get_metric_history(run, "reward")] == [
        (0, 0.0),
        (1, 0.1),
        (2, 0.2),
    ]
    assert children[0].data.params == {"lora.r": "4"}
    assert [file.path for file in client.list_artifacts(run, "reports")] == ["reports/report.html"]
    table = client.load_table(experiment.experiment_id, "tables/samples/000002.json", [run])
    assert table["text"].tolist() == ["a mug", "a cup"]


def test_a_run_is_told_in_full(config: TrackingConfig, tmp_path: Path) -> None:
    tracker = run_something(config, tmp_path)
    check(MlflowClient(tracker.uri), tmp_path)
    assert upload_journals(tmp_path / "logs") == {"sent": 0, "refused": 0, "unsent_journals": 0}


def test_an_outage_is_made_up_for_once(
    config: TrackingConfig, away: TrackingConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = run_something(away, tmp_path)
    assert tracker.run_id is None
    assert "cannot be reached" in caplog.text and "were not sent" in caplog.text
    assert upload.main([str(tmp_path)]) == 1
    assert json.loads(capsys.readouterr().out) == {"sent": 0, "refused": 0, "unsent_journals": 1}
    journal = next(iter(tmp_path.glob("logs/events-*.jsonl")))
    assert away.uri is not None and config.uri is not None
    journal.write_text(journal.read_text().replace(away.uri, config.uri))  # the server is back
    assert upload.main([str(tmp_path)]) == 0
    lines = len(journal.read_text().splitlines())
    assert json.loads(capsys.readouterr().out) == {"sent": lines, "refused": 0, "unsent_journals": 0}
    check(MlflowClient(config.uri), tmp_path)
    assert upload.main([str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["sent"] == 0
    check(MlflowClient(config.uri), tmp_path)


def test_what_was_sent_but_not_noted_is_the_same_when_sent_again(config: TrackingConfig, tmp_path: Path) -> None:
    """A kill between sending and noting, at every entry: all are sent twice."""
    tracker = run_something(config, tmp_path)
    path = next(iter(tmp_path.glob("logs/events-*.jsonl")))
    journal = Journal(path)
    journal.note(0, {})
    sender = Sender(journal, journal.entries()[0])
    for entry in journal.entries():
        sender.send(entry)
    journal.close()
    check(MlflowClient(tracker.uri), tmp_path)


def test_a_killed_run_is_finished_by_the_next(config: TrackingConfig, tmp_path: Path) -> None:
    """It wrote half a line when it died; what it had said before is sent, and its run does not stay open."""
    journal = Journal.create(tmp_path / "logs")
    header = {"uri": config.uri, "experiment": "journal", "artifacts": None, "run_name": "test"}
    journal.append({"run": "killed-parent", "event": "open", **header})
    journal.append({"run": "killed-parent", "event": "start", "name": "killed", "parent": None, "tags": {}})
    journal.append({"run": "c", "event": "start", "name": "stage", "parent": "killed-parent", "tags": {}})
    journal.append({"run": "c", "event": "metrics", "metrics": {"loss": 0.5}, "step": 1})
    with left_behind(tmp_path / "logs") as found:
        assert found == [], "one that is being written is nobody else's"
    journal.close()
    with journal.path.open("a") as file:
        file.write('{"run": "c", "event": "metr')
    run_something(config, tmp_path)
    client = MlflowClient(config.uri)
    experiment = client.get_experiment_by_name("journal")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`lewis.run_key` = 'killed-parent'")
    assert [run.info.status for run in runs] == ["KILLED"]
    children = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{runs[0].info.run_id}'")
    assert [(run.info.status, run.data.metrics) for run in children] == [("KILLED", {"loss": 0.5})]


def test_what_mlflow_refuses_is_said_and_does_not_hold_up_the_rest(
    config: TrackingConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker(config, tmp_path, "a run", {}, "test")
    tracker.parent().artifact(tmp_path / "no such file")
    tracker.parent().metrics({"after": 1.0})
    tracker.end("FINISHED")
    assert "does not take artifact" in caplog.text and "no such file" in caplog.text
    assert tracker.run_id is not None
    assert MlflowClient(config.uri).get_run(tracker.run_id).data.metrics == {"after": 1.0}


def test_an_adapter_is_registered_once_and_announced(
    config: TrackingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, ...]] = []
    monkeypatch.setattr("tasks.sending.announce", lambda *words: told.append(words))
    named = config.model_copy(update={"registered_model": "announced"})
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    run_something(named, tmp_path / "first", adapter=tmp_path)
    run_something(named, tmp_path / "second", adapter=tmp_path)
    versions = MlflowClient(config.uri).search_model_versions("name = 'announced'")
    assert [(name, version, run) for name, version, _, run in told] == [("announced", "1", "test")]
    assert [version.version for version in versions] == ["1"] or [version.version for version in versions] == [1]
    assert set(versions[0].tags) >= {"adapter_digest", "adapter_key", "base_digest", "adapter_files", "dataset_digest"}
