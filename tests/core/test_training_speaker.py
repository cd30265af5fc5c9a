"""Real GRPO on a tiny random model: results, resuming, lost listeners, signals, impossible settings."""

import json
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, Image
from pydantic import ValidationError
from safetensors.torch import load_file

from lewis_core.artifacts import ArtifactRef, ArtifactStore
from lewis_core.config.base import ModelRef, Runtime
from lewis_core.config.training import LoraSettings, RewardsConfig, TrainSpeakerConfig
from lewis_core.errors import CheckpointError, ConfigError, DataError, ListenerUnavailableError, ModelError
from lewis_core.listener.schemas import GameScores, ScoreGame
from lewis_core.models.images import ImageFolder
from lewis_core.reporting import NullReporter
from lewis_core.testing import FakeModel, write_photo_tree, write_tiny_checkpoint
from lewis_core.training import checkpoints
from lewis_core.training.assemble import check_batches
from lewis_core.training.callbacks import rename_metrics
from lewis_core.training.checkpoints import newest_checkpoint, seal
from lewis_core.training.journal import Journal, read_rows
from lewis_core.training.queries import separate_photos
from lewis_core.training.rows import load_rows
from lewis_core.training.speaker import COLUMNS, train_on_rows, train_speaker

RUNTIME = Runtime(device="cpu", torch_threads=1)


class RecordingReporter(NullReporter):
    """Keeps what is reported; calls ``after_step`` with the step after each step's metrics."""

    def __init__(self, after_step: Any = lambda step: None) -> None:
        self.steps: list[int] = []
        self.metrics: list[dict[str, float]] = []
        self.tables: list[tuple[int | None, int]] = []
        self.done: list[tuple[int, int, str]] = []
        self._after_step = after_step

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keep."""
        self.steps.append(step or 0)
        self.metrics.append(dict(metrics))
        self._after_step(step)

    def log_table(self, name: str, rows: Sequence[Mapping[str, object]], step: int | None = None) -> None:
        """Keep."""
        self.tables.append((step, len(rows)))

    def progress(self, done: int, total: int, unit: str) -> None:
        """Keep."""
        self.done.append((done, total, unit))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and photos."""
    folder = tmp_path_factory.mktemp("world")
    write_tiny_checkpoint(folder / "model")
    write_photo_tree(folder / "data", concepts=2)
    return folder


def build_rows() -> Dataset:
    queries = [(c, f"{c[0]}0{i}", p) for c in ("bag", "mug") for i in range(2) for p in range(2)]
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": f"Describe the {category}."}],
                "query": f"train/{category}/{concept}/{photo}.jpg",
                "candidates": [f"test/{category}/{category[0]}00/0.jpg", f"test/{category}/{category[0]}01/0.jpg"],
                "target_index": 0,
                "category_word": category,
            }
            for category, concept, photo in queries
        ]
    )


def settings(world: Path, **changes: Any) -> TrainSpeakerConfig:
    model = ModelRef(path=str(world / "model"), prompts="concise")
    return TrainSpeakerConfig(
        **{
            "model": model,
            "listener": model,
            "lora": LoraSettings(r=4, alpha=8),
            "max_steps": 4,
            "prompts_per_step": 2,
            "num_generations": 4,
            "max_new_tokens": 8,
            "learning_rate": 1e-2,
            "warmup_steps": 0,
            "save_steps": 2,
            "sample_steps": 2,
            "gradient_checkpointing": False,
            **changes,
        }
    )


@pytest.fixture
def train(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Train in ``tmp_path/<name>``; random text is never well-formed, so half of it is rewarded by its first byte."""
    monkeypatch.setattr(
        "lewis_core.rewards.text.format_reward", lambda text, minimum: float(bool(text) and ord(text[0]) % 2)
    )

    def run(name: str, listener: FakeModel | None = None, reporter: Any = None, **changes: Any) -> dict[str, Any]:
        output, work = tmp_path / name / "output", tmp_path / name / "work"
        output.mkdir(parents=True, exist_ok=True)
        work.mkdir(exist_ok=True)
        return train_on_rows(
            build_rows(),
            listener or FakeModel(),
            output,
            work,
            settings(world, **changes),
            world / "data",
            RUNTIME,
            reporter or NullReporter(),
        )

    return run


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "output" / "adapter" / "adapter_model.safetensors")


def test_training_writes_an_adapter_metrics_and_samples(train: Any, tmp_path: Path, world: Path) -> None:
    reporter = RecordingReporter()
    summary = train("run", reporter=reporter, max_steps=2)
    output = tmp_path / "run" / "output"
    assert sorted(path.name for path in output.rglob("*") if path.is_file()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "completions.jsonl",
        "metrics.jsonl",
        "samples.html",
        "summary.json",
    ]
    assert (summary["steps"], summary["completions"], summary["num_candidates"]) == (2, 16, 2)
    shares = {name: share for name, share in summary.items() if name.endswith("_share")}
    assert json.loads((output / "summary.json").read_text()) == {k: v for k, v in summary.items() if k not in shares}
    assert 0 < shares["update_share"] < 1
    assert 0 <= shares["listener_wait_share"] < 0.5
    rows = read_rows(output / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2] == reporter.steps
    assert {"reward", "kl", "grad_norm", "rewards/listener", "listener/accuracy", "listener/masked_frac"} <= set(
        rows[0]
    )
    assert summary["first_reward"] == pytest.approx((rows[0]["reward"] + rows[1]["reward"]) / 2, abs=1e-4)
    assert reporter.tables == [(1, 8), (2, 8)]
    assert reporter.done == [(0, 2, "steps"), (1, 2, "steps"), (2, 2, "steps")]
    samples = read_rows(output / "completions.jsonl")
    assert len(samples) == 16
    assert {"completion", "format", "advantage"} <= set(samples[0])
    adapter = json.loads((output / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(world / "model")
    assert any(tensor.abs().max() > 0 for name, tensor in weights(tmp_path / "run").items() if "lora_B" in name)


def test_a_run_that_is_stopped_and_resumed_equals_one_that_is_not(train: Any, tmp_path: Path) -> None:
    train("whole")
    signals = RecordingReporter(lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 1 else None)
    with pytest.raises(SystemExit) as stopped:
        train("parts", reporter=signals)
    assert stopped.value.code == 143
    resumed_at = newest_checkpoint(tmp_path / "parts" / "work" / "checkpoints")
    assert resumed_at is not None
    done = int(resumed_at.name.rpartition("-")[2])
    assert done in (1, 2)  # a signal during step 1's report is obeyed at the end of a step
    reporter = RecordingReporter()
    train("parts", reporter=reporter)
    assert reporter.steps == list(range(done + 1, 5))
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(tensor.equal(parts[name]) for name, tensor in whole.items())
    logged = [read_rows(tmp_path / name / "output" / "metrics.jsonl") for name in ("whole", "parts")]
    assert [row["step"] for row in logged[1]] == [1, 2, 3, 4]
    assert [row["reward"] for row in logged[0]] == [row["reward"] for row in logged[1]]
    for name in ("metrics.jsonl", "completions.jsonl", "summary.json", "adapter/adapter_model.safetensors"):
        one, other = ((tmp_path / run / "output" / name).read_bytes() for run in ("whole", "parts"))
        assert one == other, f"{name} differs between equal runs"


class MortalModel(FakeModel):
    """Goes away after some requests."""

    def __init__(self, requests: int) -> None:
        super().__init__()
        self.left = requests

    def score(self, games: Sequence[ScoreGame]) -> list[GameScores]:
        """Answer, or not."""
        self.left -= 1
        if self.left < 0:
            raise ListenerUnavailableError("nobody answers at http://127.0.0.1:1")
        return super().score(games)


def test_a_lost_listener_costs_no_finished_step(train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = "<thinking>I see a mug.</thinking> <coarse>A photo of a mug</coarse> <detailed>It is red.</detailed>"
    monkeypatch.setattr("lewis_core.rewards.trl.completion_text", lambda completion: good)
    with pytest.raises(ListenerUnavailableError, match="nobody answers"):
        train("lost", MortalModel(3), save_steps=100)
    assert newest_checkpoint(tmp_path / "lost" / "work" / "checkpoints").name == "checkpoint-3"
    reporter = RecordingReporter()
    train("lost", reporter=reporter, save_steps=100)
    assert reporter.steps == [4]


def test_a_half_written_checkpoint_is_not_used(tmp_path: Path) -> None:
    for name, complete in (("checkpoint-2", True), ("checkpoint-10", True), ("checkpoint-12", False)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text("weights")
        if complete:
            seal(tmp_path / name)
    (tmp_path / "checkpoint-2-kept by hand").mkdir()
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.name == "checkpoint-10"  # by number, not by name
    assert (tmp_path / "checkpoint-2-kept by hand").exists()
    assert not (tmp_path / "checkpoint-12").exists()
    assert newest_checkpoint(tmp_path / "nothing") is None


def test_a_process_goes_on_from_what_the_main_one_has_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = tmp_path / "checkpoint-4"
    monkeypatch.setattr(checkpoints, "as_main", lambda find: chosen)
    monkeypatch.setattr(checkpoints, "VISIBLE_S", -1.0)
    with pytest.raises(CheckpointError, match="checkpoint-4, which this one does not see"):
        checkpoints.agree_on_checkpoint(tmp_path)
    chosen.mkdir()
    (chosen / "weights").write_text("weights")
    seal(chosen)
    assert checkpoints.agree_on_checkpoint(tmp_path) == chosen


def test_training_that_was_killed_after_its_last_step_only_writes_results(train: Any, tmp_path: Path) -> None:
    train("done")
    first = weights(tmp_path / "done")
    reporter = RecordingReporter()
    train("done", reporter=reporter)
    assert reporter.steps == []
    assert all(tensor.equal(weights(tmp_path / "done")[name]) for name, tensor in first.items())


def test_accumulation_sees_the_same_prompts_as_one_batch(train: Any, tmp_path: Path) -> None:
    train("one", max_steps=1, beta=0.0)
    train("two", max_steps=1, beta=0.0, micro_batch_prompts=1)
    texts = [
        [row["completion"] for row in read_rows(tmp_path / name / "output" / "completions.jsonl")]
        for name in ("one", "two")
    ]
    assert texts[0] == texts[1]
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(tensor.allclose(two[name], atol=1e-3) for name, tensor in one.items())


def test_the_plain_engine_trains_too(train: Any, tmp_path: Path, world: Path) -> None:
    plain = ModelRef(path=str(world / "model"), prompts="concise", engine="plain")
    summary = train("plain", max_steps=2, model=plain)
    assert summary["completions"] == 16
    assert any(tensor.abs().max() > 1e-4 for name, tensor in weights(tmp_path / "plain").items() if "lora_B" in name)
    texts = [row["completion"] for row in read_rows(tmp_path / "plain" / "output" / "completions.jsonl")]
    assert len(texts) == 16
    assert len(set(texts)) > 8


def test_a_run_that_goes_on_keeps_its_plan(train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train("run", max_steps=2, gradient_checkpointing="auto")
    plan = json.loads((tmp_path / "run" / "work" / "plan.json").read_text())
    assert plan == {"prompts": 2, "checkpointing": False}
    monkeypatch.setattr("lewis_core.training.memory.free_bytes", lambda device: 1.0)
    train("run", max_steps=4, gradient_checkpointing="auto")
    train("other", max_steps=2, gradient_checkpointing="auto")
    plans = [json.loads((tmp_path / name / "work" / "plan.json").read_text()) for name in ("run", "other")]
    assert plans == [plan, {"prompts": 1, "checkpointing": True}]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 8),
        ({"micro_batch_prompts": 2}, 8),
        ({"num_processes": 4}, 2),
        ({"num_processes": 2, "micro_batch_prompts": 64}, 4),
    ],
)
def test_processes_share_eight_prompts(world: Path, changes: dict[str, int], expected: int) -> None:
    assert check_batches(settings(world, prompts_per_step=8, **changes)) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_processes": 3}, "8, which 3 processes cannot share equally; make it a multiple of 3"),
        ({"micro_batch_prompts": 3}, "micro_batch_prompts is 3, which does not divide the 8 prompts"),
    ],
)
def test_batches_that_do_not_divide_are_refused(world: Path, changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(world, prompts_per_step=8, **changes)


def test_the_processes_that_there_are_decide(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match=r"training\.prompts_per_step is 8, which 3 processes cannot share"):
        check_batches(settings(world, prompts_per_step=8))


def test_rows_are_checked_before_a_model_is_loaded(world: Path, tmp_path: Path) -> None:
    build_rows().save_to_disk(tmp_path / "good")
    assert len(load_rows(tmp_path / "good", settings(world), COLUMNS)) == 8
    with pytest.raises(DataError, match=r"8 rows, one step needs training\.prompts_per_step = 16"):
        load_rows(tmp_path / "good", settings(world, prompts_per_step=16), COLUMNS)
    build_rows().remove_columns(["query", "candidates"]).save_to_disk(tmp_path / "poor")
    with pytest.raises(DataError, match="no column candidates, query"):
        load_rows(tmp_path / "poor", settings(world), COLUMNS)
    with pytest.raises(DataError, match="holds no data set"):
        load_rows(tmp_path / "nothing", settings(world), COLUMNS)


def test_an_adapter_needs_layers_of_its_names(train: Any) -> None:
    with pytest.raises(ModelError, match=r"no layers named w1, w2"):
        train("odd", lora=LoraSettings(target_modules=("q_proj", "w1", "w2")))


def test_the_stage_reads_its_artifact_and_asks_for_a_listener(world: Path, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "store")
    with store.building("build-dataset", "k") as folder:
        build_rows().save_to_disk(folder / "dataset")
        artifact: ArtifactRef = store.publish(folder, "build-dataset", "k", {}, "s", {}, {})
    with pytest.raises(ConfigError, match="no listener was given"):
        train_speaker(
            artifact,
            tmp_path / "out",
            tmp_path / "work",
            settings(world),
            world / "data",
            None,
            RUNTIME,
            NullReporter(),
        )


def test_an_adapter_can_be_trained_further(train: Any, tmp_path: Path, world: Path) -> None:
    train("first", max_steps=1)
    adapter = tmp_path / "first" / "output" / "adapter"
    continued = ModelRef(path=str(world / "model"), adapter=adapter)
    train("second", max_steps=1, model=continued)
    first, second = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert first.keys() == second.keys()
    assert any(not tensor.equal(second[name]) for name, tensor in first.items())


def test_rewards_without_a_listener_need_no_service(train: Any) -> None:
    rewards = RewardsConfig.model_validate({"listener": {"weight": 0}})
    assert "first_accuracy" not in train("alone", max_steps=1, rewards=rewards)


def test_photos_may_be_stored_in_the_data_set(world: Path, tmp_path: Path) -> None:
    rows = build_rows()
    photos = [{"bytes": (world / "data" / path).read_bytes(), "path": path} for path in rows["query"]]
    features = Features({**rows.remove_columns("query").features, "query": Image()})
    stored = rows.remove_columns("query").to_list()
    stored = Dataset.from_list([{**row, "query": photo} for row, photo in zip(stored, photos, strict=True)], features)
    stored.save_to_disk(tmp_path / "dataset")
    separated, source = separate_photos(
        load_rows(tmp_path / "dataset", settings(world), COLUMNS), tmp_path / "no-photos-here"
    )
    folder = ImageFolder(world / "data")
    assert len(separated) == len(rows)
    for reference, path in zip(separated["query"], rows["query"], strict=True):
        assert source.digest(reference) == folder.digest(path)
        assert source.load(reference).tobytes() == folder.load(path).tobytes()
    assert separate_photos(rows, world / "data")[0] is rows


def test_metrics_are_renamed() -> None:
    logs = {"rewards/format/mean": 1, "rewards/format/std": 0.2, "kl": 0.5, "epoch": 2, "x": float("nan"), "y": None}
    assert rename_metrics(logs) == {"rewards/format": 1.0, "kl": 0.5}


def test_rows_of_a_killed_run_end_at_the_resumed_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste', encoding="utf-8")
    assert read_rows(path, last_step=2) == [{"step": 1}, {"step": 2}]
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3]
    assert read_rows(tmp_path / "missing") == []


def test_completions_with_any_sign_survive_a_cut_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "completions.jsonl")
    rows = [{"step": 1, "completion": "a\u2028b\x85c\u2029d\n"}, {"step": 2, "completion": "é"}]
    journal.append(rows)
    with journal.path.open("ab") as file:
        file.write('{"step": 3, "completion": "é'.encode()[:-1])  # cut within a letter
    assert read_rows(journal.path) == rows
    journal.rewind(2)
    assert read_rows(journal.path) == rows
