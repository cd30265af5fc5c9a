"""Which checkpoints are looked at, and which becomes the champion; nothing is trained, loaded or asked."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import save_file

from flows.leaderboard import Standing, difference, markdown, notify, rows
from flows.reevaluate_checkpoints import choose_champion
from flows.steps import Evaluated
from flows.summary import rounded, shown
from lewis_core.artifacts import ArtifactRef, ArtifactStore
from lewis_core.config.base import ModelRef
from lewis_core.config.evaluation import SpeakerRef
from lewis_core.config.pipeline import PipelineConfig
from lewis_core.config.reevaluation import ReevaluationConfig
from lewis_core.errors import ConfigError, TrackingError
from lewis_core.evaluation.records import EvaluationResult, Metric, Prediction
from lewis_core.models.adapters import adapter_digest
from lewis_core.stages import Stage, run_stage
from lewis_core.testing import publish_files
from tasks.checkpoints import Checkpoint, find_checkpoints
from tasks.registry import PROMOTED, Registry, base_digest

BASE = ModelRef(path="pocket:base")
NUMBER = ("game", "listener", "accuracy")


def write_adapter(folder: Path, value: float = 1.0, base: str = "pocket:base", age_s: float = 1e6) -> Path:
    folder.mkdir(parents=True)
    save_file({"lora_A": torch.full((2, 3), value)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": base}))
    moment = (folder / "adapter_config.json").stat().st_mtime - age_s
    for path in (folder, *folder.iterdir()):
        os.utime(path, (moment, moment))
    return folder


def looked_at(found: list[Checkpoint]) -> dict[str, str]:
    return {one.label: one.skipped or "usable" for one in found}


def test_half_written_and_foreign_adapters_are_left_alone_with_the_reason(tmp_path: Path) -> None:
    write_adapter(tmp_path / "a/good")
    write_adapter(tmp_path / "a/fresh", age_s=1.0)
    write_adapter(tmp_path / "foreign", base="some/other")
    half = write_adapter(tmp_path / "half") / "adapter_model.safetensors"
    content, moment = half.read_bytes(), half.stat().st_mtime
    half.write_bytes(content[:-8])
    os.utime(half, (moment, moment))
    os.utime(half.parent, (moment, moment))
    config = ReevaluationConfig(registry=False, watch=tmp_path, settle_s=60)
    found = looked_at(find_checkpoints(config, BASE, None))
    assert list(found) == ["a/fresh", "a/good", "foreign", "half"]
    assert "still being written" in found["a/fresh"] and "settle_s" in found["a/fresh"]
    assert found["a/good"] == "usable"
    assert found["foreign"] == "it belongs to some/other, not to pocket:base"
    assert "its header promises" in found["half"]


def test_the_same_files_are_looked_at_once(tmp_path: Path) -> None:
    write_adapter(tmp_path / "a")
    write_adapter(tmp_path / "b")
    write_adapter(tmp_path / "c", value=2.0)
    found = find_checkpoints(ReevaluationConfig(registry=False, watch=tmp_path), BASE, None)
    assert [one.label for one in found] == ["a", "c"]


def test_a_watched_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"reevaluation\.watch: there is no folder"):
        find_checkpoints(ReevaluationConfig(watch=tmp_path / "nowhere"), BASE, None)


@pytest.fixture
def registry(tracking_uri: str, tmp_path: Path) -> Registry:
    """Three versions: a whole one, one on other weights, one whose files were changed in the store."""
    client, name = MlflowClient(tracking_uri), f"speaker-{tmp_path.name}"
    client.create_registered_model(name)
    made = [write_adapter(tmp_path / f"made/{number}", value=float(number)) for number in range(4)]
    known = (
        {"base_digest": base_digest(BASE)},
        {"base_digest": "of other weights"},
        {"adapter_files": "what it was when it was registered"},
        {"adapter_files": adapter_digest(made[3])},
    )
    for adapter, tags in zip(made, known, strict=True):
        client.create_model_version(name, source=adapter.as_uri(), tags=tags)
    return Registry(tracking_uri, name, tmp_path / "downloads", ArtifactStore(tmp_path / "store"))


def test_versions_are_fetched_checked_and_told_apart_by_their_base(registry: Registry, tmp_path: Path) -> None:
    found = find_checkpoints(ReevaluationConfig(), BASE, registry)
    assert [one.version for one in found] == ["1", "2", "3", "4"]
    reasons = [one.skipped for one in found]
    assert reasons[0] == reasons[3] == ""
    assert reasons[1] == "its base has other weights than pocket:base"
    assert "its files are not those that were registered" in reasons[2]
    assert found[0].adapter is not None and adapter_digest(found[0].adapter) == adapter_digest(tmp_path / "made/0")
    assert not list((tmp_path / "downloads").glob(".*")), "nothing unfinished is left"
    again = find_checkpoints(ReevaluationConfig(watch=tmp_path / "made"), BASE, registry)
    assert [one.label.rpartition("/")[2] for one in again[4:]] == ["1", "2"], "registered files are listed once"


def test_a_registry_that_is_away_is_an_error_and_not_an_empty_list(tmp_path: Path) -> None:
    away = Registry("sqlite:////proc/no/such/mlflow.db", "speaker", tmp_path, ArtifactStore(tmp_path))
    with pytest.raises(TrackingError, match=r"cannot be asked about speaker .*switch reevaluation.registry off"):
        find_checkpoints(ReevaluationConfig(), BASE, away)


def test_the_champion_is_an_alias(registry: Registry) -> None:
    assert registry.champion() is None
    registry.promote("1")
    assert registry.champion() == "1"
    assert PROMOTED in registry.versions()[0].tags


class FakeRegistry:
    """Remembers who was promoted."""

    def __init__(self, champion: str | None) -> None:
        self.alias, self.promoted = champion, list[str]()

    def champion(self) -> str | None:
        """The alias."""
        return self.alias

    def promote(self, version: str) -> None:
        """Move it."""
        self.alias = version
        self.promoted.append(version)


class DirectRun:
    """Runs stages at once, without Prefect."""

    def __init__(self, config: PipelineConfig, store: ArtifactStore) -> None:
        self.config, self.store = config, store

    def stage(self, stage: Stage, /, label: str = "", **arguments: Any) -> ArtifactRef:
        """Run it."""
        return run_stage(stage, self.store, arguments)


def play(folder: Path, label: str, wins: int, version: str | None, **facts: Any) -> Standing:
    """A checkpoint that won the first ``wins`` of 40 games, one for each concept."""
    games = [
        Prediction(
            item=str(number),
            concept=f"c{number}",
            category="mug",
            options=("a", "b"),
            expected=0,
            answered=0 if number < wins else 1,
            probabilities=(0.6, 0.4),
        )
        for number in range(40)
    ]
    metric = Metric(name="accuracy", value=wins / 40, n=40)
    result = EvaluationResult(evaluation="game", speaker="trained", answering="listener", metrics=(metric,))
    files = {
        "metrics.json": result.model_dump_json(),
        "predictions.jsonl": "".join(game.model_dump_json() + "\n" for game in games),
    }
    ref = publish_files(folder / label / "store", "play-games", files)
    checkpoint = Checkpoint(label, label, folder, version, **facts) if label != "base" else None
    speaker = SpeakerRef(name="trained", model=BASE)
    return Standing(label, checkpoint, speaker, ref, Evaluated(speaker, ref, (ref,)))


@pytest.mark.parametrize(
    ("wins", "champion", "retired", "promote", "expected"),
    [
        pytest.param({"1": 38}, None, "", True, ("base", "1", ["1"]), id="better-than-the-base"),
        pytest.param({"1": 12}, None, "", True, ("base", "base", []), id="better-by-chance-only"),
        pytest.param({"1": 38, "2": 39}, "1", "", True, ("1", "1", []), id="hardly-better-than-the-champion"),
        pytest.param({"1": 20, "2": 38}, "1", "", True, ("1", "2", ["2"]), id="better-than-the-champion"),
        pytest.param({"1": 25, "2": 38, "3": 37}, None, "", True, ("base", "2", ["2"]), id="the-best-of-several"),
        pytest.param({"1": 20, "2": 38}, "1", "2", True, ("1", "1", []), id="people-took-the-alias-from-it"),
        pytest.param({"1": 20, "2": 38}, "1", "", False, ("1", "2", []), id="switched-off"),
        pytest.param({"2": 38}, "1", "", True, ("none", "none", []), id="the-champion-cannot-be-evaluated"),
    ],
)
def test_who_becomes_the_champion(
    config: PipelineConfig,
    tmp_path: Path,
    wins: dict[str, int],
    champion: str | None,
    retired: str,
    promote: bool,
    expected: tuple[str, str, list[str]],
) -> None:
    reevaluation = ReevaluationConfig.model_validate({"champion": {"promote": promote, "answering": "listener"}})
    statistics = config.evaluation.statistics.model_copy(update={"resamples": 500})
    evaluation = config.evaluation.model_copy(update={"statistics": statistics})
    settings = config.model_copy(update={"reevaluation": reevaluation, "evaluation": evaluation})
    standings = [play(tmp_path, "base", 10, None)]
    standings += [play(tmp_path, number, won, number, is_retired=number == retired) for number, won in wins.items()]
    registry, run = FakeRegistry(champion), DirectRun(settings, ArtifactStore(tmp_path / "store"))
    tested, verdict = choose_champion(run, registry, standings, NUMBER)  # type: ignore[arg-type]
    assert (verdict.before, verdict.after, registry.promoted) == expected
    assert verdict.is_promoted is bool(expected[2])
    assert [one.test is None for one in tested] == [verdict.after in (one.label, "none") for one in tested]
    table = rows(tested, NUMBER, verdict.after)
    assert [row["checkpoint"] for row in table if str(row["checkpoint"]).endswith("(champion)")] == (
        [] if verdict.after == "none" else [f"{verdict.after} (champion)"]
    )
    values = [float(str(row["game listener accuracy"])) for row in table]
    assert values == sorted(values, reverse=True)
    assert f"Champion: **{verdict.after}**" in markdown(run, tested, NUMBER, verdict.after)  # type: ignore[arg-type]


def test_numbers_are_shown_in_their_unit_and_short_enough_for_a_table() -> None:
    assert (shown("accuracy", 7 / 12), shown("f1", 5 / 7), shown("f1", None)) == ("58.3 %", "0.714", "–")
    assert (difference("accuracy", -0.125), difference("f1", 0.0625)) == ("-12.5", "+0.062")
    assert rounded([{"value": 7 / 12, "n": 12, "low": None}]) == [{"value": 0.5833, "n": 12, "low": None}]


@pytest.mark.usefixtures("prefect_server")
def test_people_are_told_by_a_block(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    from prefect.blocks.notifications import CustomWebhookNotificationBlock

    told: list[str] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    Thread(target=server.serve_forever, daemon=True).start()
    block = CustomWebhookNotificationBlock(
        name="lab",
        url=f"http://127.0.0.1:{server.server_port}/",
        json_data={"subject": "{{subject}}", "body": "{{body}}"},
    )
    block.save("lab", _sync=True)  # type: ignore[call-arg]
    notify("custom-webhook/lab", "pocket: 2 took the place of 1.", "| table |")
    server.shutdown()
    server.server_close()
    assert [json.loads(message) for message in told] == [
        {"subject": "pocket: 2 took the place of 1.", "body": "| table |"}
    ]
    notify("custom-webhook/nobody", "subject", "body")
    assert "no message was sent by block custom-webhook/nobody" in caplog.text
