"""A run that is stopped, killed or loses its listener equals one that is not: on the pocket models, bit for bit."""

import json
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infra.chaos.world import POCKET, RUNTIME, build_rows, settings, write_photos
from lewis_core.errors import CheckpointError, ListenerUnavailableError, WatchdogError
from lewis_core.listener.schemas import GameScores, ScoreGame
from lewis_core.models.loading import load_model
from lewis_core.models.vlm import open_model
from lewis_core.reporting import NullReporter
from lewis_core.rewards.trl import Judgement
from lewis_core.testing import FakeModel
from lewis_core.training import held_out
from lewis_core.training.callbacks import COMPLETIONS, METRICS
from lewis_core.training.checkpoints import newest_checkpoint
from lewis_core.training.held_out import choose_games, describe, summarise
from lewis_core.training.journal import read_rows
from lewis_core.training.shared_prefix import SharedPrefixTrainer
from lewis_core.training.speaker import train_on_rows
from lewis_core.training.trainer import SpeakerTrainer

RESULTS = (METRICS, COMPLETIONS, "summary.json", "adapter/adapter_model.safetensors", "adapter/adapter_config.json")
STEPS = 6  # four steps are an epoch


class KilledError(Exception):
    """Stands for a kill: nothing in the product expects it."""


class Interrupting(NullReporter):
    """Calls something when a step's metrics are reported, before its checkpoint is written."""

    def __init__(self, at: Mapping[int, Callable[[], None]]) -> None:
        self._at = at

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Interrupt."""
        self._at.get(step or 0, lambda: None)()


class Mortal:
    """A listener that goes away at some of its requests."""

    def __init__(self, model: Any, lost_at: Sequence[int] = ()) -> None:
        self._model, self.asked, self._lost_at = model, 0, lost_at

    def score(self, games: Sequence[ScoreGame]) -> list[GameScores]:
        """Answer, or be away."""
        self.asked += 1
        if self.asked in self._lost_at:
            raise ListenerUnavailableError("nobody answers at http://127.0.0.1:1")
        found: list[GameScores] = self._model.score(games)
        return found


class Stuck:
    """A listener during whose answer the process is asked to stop, and which never answers."""

    def __init__(self, model: Any, stuck_at: int) -> None:
        self._model, self._left, self.released = model, stuck_at, threading.Event()

    def score(self, games: Sequence[ScoreGame]) -> list[GameScores]:
        """Answer, or ask to stop and wait until the test is over."""
        self._left -= 1
        if self._left == 0:
            stop()
            self.released.wait(600)
            raise ListenerUnavailableError("it never answered")
        found: list[GameScores] = self._model.score(games)
        return found


def kill() -> None:
    raise KilledError


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


class Place:
    """Where the runs are, and what an uninterrupted one gives."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.photos = folder, write_photos(folder / "photos")
        self.rows = build_rows(self.photos)
        self.listener = open_model(POCKET, RUNTIME, self.photos)

    def work(self, name: str) -> Path:
        """Folder of a run's checkpoints."""
        return self.folder / name / "work"

    def train(
        self,
        name: str,
        at: Mapping[int, Callable[[], None]] = {},
        listener: Any = None,
        held_out: Any = None,
        **changes: Any,
    ) -> Any:
        """Train, or go on training."""
        output, work = self.folder / name / "output", self.work(name)
        for folder in (output, work):
            folder.mkdir(parents=True, exist_ok=True)
        config = settings(**{"max_steps": STEPS} | changes)
        return train_on_rows(
            *(self.rows, listener or self.listener, output, work, config, self.photos, RUNTIME, Interrupting(at)),
            held_out=held_out,
        )

    def results(self, name: str) -> dict[str, bytes]:
        """Everything that a run has written."""
        return {file: (self.folder / name / "output" / file).read_bytes() for file in RESULTS}

    def state(self, name: str) -> dict[str, Any]:
        """What the last checkpoint holds of optimizer, scheduler and random generators."""
        folder = newest_checkpoint(self.work(name) / "checkpoints")
        assert folder is not None
        files = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
        return {file: torch.load(folder / file, weights_only=False) for file in files}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Photos, rows, the listener."""
    return Place(tmp_path_factory.mktemp("equality"))


@pytest.fixture(scope="module")
def whole(place: Place) -> dict[str, bytes]:
    """Results of a run that nothing interrupts."""
    place.train("whole")
    return place.results("whole")


def assert_equal(one: Any, other: Any) -> None:
    """Compare nested states to the last bit."""
    assert type(one) is type(other)
    if isinstance(one, Mapping):
        assert one.keys() == other.keys()
        one, other = list(one.values()), [other[key] for key in one]
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, np.ndarray):
        assert np.array_equal(one, other)
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_equal(mine, theirs)
    else:
        assert one == other


def test_killed_twice_stopped_once_and_listener_lost_in_the_second_epoch(place: Place, whole: dict[str, bytes]) -> None:
    with pytest.raises(KilledError):
        place.train("parts", {2: kill})  # before the first checkpoint
    torch.manual_seed(12345)  # whatever the next process draws before: there is dropout
    with pytest.raises(KilledError):
        place.train("parts", {5: kill})
    with pytest.raises(SystemExit):
        place.train("parts", {4: stop})
    assert step_of_newest(place, "parts") == 4
    with pytest.raises(ListenerUnavailableError):  # step 6 has begun: random numbers and tokens were used
        place.train("parts", listener=Mortal(place.listener, lost_at=[2]))
    assert step_of_newest(place, "parts") == 5
    place.train("parts")
    assert place.results("parts") == whole
    assert [row["step"] for row in read_rows(place.folder / "parts" / "output" / METRICS)] == list(range(1, STEPS + 1))


def test_sigterm_gives_up_the_step_that_was_begun_whatever_it_is_doing(
    place: Place, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing, waiting for a listener that never answers, updating: the begun step is done again, and equal."""

    def stop_in(patch: pytest.MonkeyPatch, trainer: type[SpeakerTrainer], method: str, step: int) -> None:
        original = getattr(trainer, method)

        def stopping(self: Any, *arguments: Any) -> Any:
            if self.state.global_step == step - 1:
                stop()
            return original(self, *arguments)

        patch.setattr(trainer, method, stopping)

    with monkeypatch.context() as patch:
        stop_in(patch, SharedPrefixTrainer, "_judge_ahead", 2)
        with pytest.raises(SystemExit, match="143"):
            place.train("phases")
    assert step_of_newest(place, "phases") == 1
    stuck = Stuck(place.listener, stuck_at=2)
    with pytest.raises(SystemExit, match="143"):
        place.train("phases", listener=stuck)
    stuck.released.set()
    assert step_of_newest(place, "phases") == 2
    with monkeypatch.context() as patch:
        stop_in(patch, SpeakerTrainer, "_compute_loss", 5)
        with pytest.raises(SystemExit, match="143"):
            place.train("phases")
    assert step_of_newest(place, "phases") == 4
    assert [row["step"] for row in read_rows(place.work("phases") / METRICS)] == [1, 2, 3, 4]
    place.train("phases")
    assert place.results("phases") == whole


def step_of_newest(place: Place, name: str) -> int:
    folder = newest_checkpoint(place.work(name) / "checkpoints")
    assert folder is not None
    return int(folder.name.rpartition("-")[2])


def test_a_resumed_run_ends_with_the_same_optimizer_scheduler_and_random_generators(
    place: Place, whole: dict[str, bytes]
) -> None:
    place.train("state", save_steps=1)
    for step in range(STEPS - 1, STEPS + 1):
        checkpoint = place.work("state") / "checkpoints" / f"checkpoint-{step}"
        assert checkpoint.is_dir()  # two are kept
    final = place.state("state")
    (place.work("state") / "checkpoints" / f"checkpoint-{STEPS}" / "optimizer.pt").write_bytes(b"cut")
    place.train("state", save_steps=1)  # the damaged one is not used
    assert_equal(place.state("state"), final)
    assert place.results("state") == whole
    place.train("state", save_steps=1)  # killed when all steps were done, and the result was not yet published
    assert place.results("state") == whole


@pytest.fixture
def full_disk() -> Iterator[Callable[[int], None]]:
    """Limits the size of files that can be written; the kernel refuses the rest. Lifted in the end."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size if size >= 0 else before[0], before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_costs_a_checkpoint_and_nothing_else(
    place: Place, whole: dict[str, bytes], full_disk: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    kept: list[list[str]] = []

    def look() -> None:
        kept.append(sorted(path.name for path in (place.work("full") / "checkpoints").iterdir()))
        full_disk(-1)

    with pytest.raises(KilledError):
        place.train("full", {3: lambda: full_disk(1000), 5: look, 6: kill}, save_steps=2)
    assert kept == [["checkpoint-2"]]  # number 4 was written in part, and removed
    assert "checkpoint 4 cannot be written" in caplog.text
    assert "its rows wait in memory" in caplog.text
    place.train("full", save_steps=2)
    assert place.results("full") == whole


def test_a_disk_that_stays_full_ends_training_with_its_own_error(
    place: Place, full_disk: Callable[[int], None]
) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoint 4 cannot be written .*neither could the 2 before it"):
        place.train("stays", {2: lambda: full_disk(1000)}, save_steps=1)
    full_disk(-1)
    assert step_of_newest(place, "stays") == 1


def test_an_update_that_is_not_finite_is_left_out_and_the_fifth_in_a_row_ends_training(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights stay usable: the evidence has the completions, and the last checkpoint is from before."""
    compute = SpeakerTrainer._compute_loss

    def spoil(self: Any, model: Any, inputs: Any) -> Any:
        loss = compute(self, model, inputs)
        return loss * float("nan") if self.state.global_step >= 1 else loss

    monkeypatch.setattr(SpeakerTrainer, "_compute_loss", spoil)
    with pytest.raises(WatchdogError, match=r"not-finite: grad_norm not finite, in 5 steps up to step 6"):
        place.train("spoilt", save_steps=1)
    rows = read_rows(place.work("spoilt") / METRICS)
    assert ["grad_norm" in row for row in rows] == [True] + [False] * 5
    assert all(row["kl"] < 0.1 and row["completions/mean_length"] > 20 for row in rows)  # it still speaks
    assert step_of_newest(place, "spoilt") == 5
    monkeypatch.undo()
    place.train("spoilt", save_steps=1, watchdogs={"action": "warn"})  # other limits go on from the checkpoint
    assert read_rows(place.work("spoilt") / METRICS)[-1]["step"] == 6


def test_completions_that_are_used_for_two_updates_are_not_torn_apart(place: Place) -> None:
    """What was generated is not saved: checkpoints lie between generations, and a stop waits for one."""
    changes = {"num_iterations": 2, "save_steps": 3}
    assert place.train("twice", **changes)["completions"] == 3 * 2 * 2  # generations, prompts, each
    with pytest.raises(SystemExit):
        place.train("again", {3: stop}, **changes)
    assert step_of_newest(place, "again") == 4
    place.train("again", **changes)
    assert place.results("again") == place.results("twice")


def test_a_model_that_is_trained_whole_goes_on_with_its_weights_and_loads_like_any_other(place: Place) -> None:
    changes = {"full_finetuning": True, "learning_rate": 1e-5, "beta": 0.1, "max_steps": 3}
    place.train("full-whole", **changes)
    with pytest.raises(SystemExit):
        place.train("full-parts", {2: stop}, **changes)
    assert step_of_newest(place, "full-parts") == 2
    place.train("full-parts", **changes)
    one, other = (place.folder / name / "output" for name in ("full-whole", "full-parts"))
    for file in (METRICS, COMPLETIONS, "model/model-00001.safetensors", "model/config.json"):
        assert (one / file).read_bytes() == (other / file).read_bytes()
    assert read_rows(one / METRICS)[-1]["kl"] > 0  # against the base, which stays as it was
    [trained, base] = (load_model(POCKET.model_copy(update={"path": path}), RUNTIME)[0].state_dict() for path in
                       (str(one / "model"), POCKET.path))  # fmt: skip
    changed = {name for name, weight in trained.items() if not torch.equal(weight, base[name])}
    assert any("mlp" in name for name in changed)
    assert not any("visual" in name for name in changed)


def test_a_held_out_listener_is_asked_about_the_same_games_and_changes_nothing(
    place: Place, whole: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    other = FakeModel(says_yes=lambda image, text: 0.9 if image.endswith("/0.jpg") and "mug" in image else 0.2)
    held_out = Mortal(other, lost_at=[3])
    place.train("held", held_out=held_out, held_out_steps=2, held_out_games=3)
    rows = read_rows(place.work("held") / METRICS)
    measured = {row["step"]: row for row in rows if "held_out/accuracy" in row}
    assert sorted(measured) == [1, 2, 6]  # at step 4 it was away: no number is made up
    assert "the held-out listener is not measured at this step" in caplog.text
    for row in measured.values():
        assert row["held_out/gap"] == row["held_out/listener_accuracy"] - row["held_out/accuracy"]
        assert 0 <= row["held_out/read_frac"] <= 1
    without = [{k: v for k, v in row.items() if not k.startswith("held_out/")} for row in rows]
    assert without == [json.loads(line) for line in whole[METRICS].decode().splitlines()]
    assert place.results("held")["adapter/adapter_model.safetensors"] == whole["adapter/adapter_model.safetensors"]
    games = choose_games(place.rows, settings(held_out_games=3))
    assert games == choose_games(place.rows, settings(held_out_games=3))
    assert len({game["game_id"] for game in games}) == 3


def test_sigterm_gives_up_a_measurement_which_is_made_up_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the speaker writes, and while the held-out listener never answers, after the last step at that."""
    other = FakeModel(says_yes=lambda image, text: 0.9 if image.endswith("/0.jpg") and "mug" in image else 0.2)
    changes = {"max_steps": 2, "held_out_steps": 2, "held_out_games": 3}
    place.train("measured", held_out=other, **changes)
    assert ["held_out/gap" in row for row in read_rows(place.work("measured") / METRICS)] == [True, True]
    with monkeypatch.context() as patch:
        patch.setattr(held_out, "describe", lambda trainer, rows: (stop(), describe(trainer, rows))[1])
        with pytest.raises(SystemExit, match="143"):
            place.train("given-up", held_out=other, **changes)
    assert step_of_newest(place, "given-up") == 1
    stuck = Stuck(other, stuck_at=2)
    with pytest.raises(SystemExit, match="143"):
        place.train("given-up", held_out=stuck, **changes)
    stuck.released.set()
    assert step_of_newest(place, "given-up") == 2
    assert ["held_out/gap" in row for row in read_rows(place.work("given-up") / METRICS)] == [True, False]
    place.train("given-up", held_out=other, **changes)
    assert place.results("given-up") == place.results("measured")


def test_numbers_of_a_listener_by_hand() -> None:
    sure = Judgement((2.0, 0.0), (0.9, 0.5), (1.0, 1.0))
    found = summarise([sure, None, sure, sure], [0, 0, 1, 0])
    assert found["accuracy"] == 0.5  # found, unreadable, not found, found
    share = 1 / (1 + np.exp(-2.0))
    assert found["posterior"] == pytest.approx((share + (1 - share) + share) / 3)
    assert found["target_yes"] == pytest.approx((0.9 + 0.5 + 0.9) / 3)
    assert summarise([None], [0]) == {"accuracy": 0.0}
