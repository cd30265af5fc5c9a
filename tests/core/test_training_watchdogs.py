"""Watchdogs warn, then stop: each trouble by its name; the evidence is saved; an interruption forgets nothing."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lewis_core.config.watchdogs import WatchdogsConfig
from lewis_core.errors import WatchdogError
from lewis_core.reporting import NullReporter
from lewis_core.stages import identity
from lewis_core.training.callbacks import rename_metrics
from lewis_core.training.journal import Journal
from lewis_core.training.watchdogs import WatchdogCallback, Watchdogs, find_troubles

FINE = {
    "loss": 0.1,
    "grad_norm": 0.5,
    "frac_reward_zero_std": 0.25,
    "completions/mean_length": 30.0,
    "completions/clipped_ratio": 0.1,
    "kl": 0.2,
    "hacks/degenerate": 0.1,
    "listener/masked_frac": 0.0,
}
CONFIG = WatchdogsConfig(warn_after=2, stop_after=4, non_finite_stop_after=3)


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        ({"frac_reward_zero_std": 1.0}, "reward-collapse", "1 of the groups have equal rewards"),
        ({"completions/clipped_ratio": 0.99}, "length-explosion", "0.99 of the completions are cut off"),
        ({"completions/mean_length": 200.0}, "length-explosion", "200 tokens a completion, 30 in the first steps"),
        ({"completions/mean_length": 5.0}, "length-collapse", "5 tokens a completion, 30 in the first steps"),
        ({"completions/mean_length": 2.0}, "length-collapse", "2 tokens"),
        ({"kl": 50.0}, "kl-blow-up", "50 nats per token"),
        ({"hacks/degenerate": 0.9}, "degenerate-text", "0.9 of the completions repeat"),
        ({"listener/masked_frac": 0.05}, "masked", "cannot be judged"),
        ({"answers/yes": 0.99}, "answer-collapse", "0.99 of the readable answers are yes"),
        ({"answers/yes": 0.01, "answers/unreadable": 0.5}, "answer-collapse", "0.98 of the readable answers are no"),
        ({"grad_norm": float("nan")}, "not-finite", "grad_norm not finite"),
        ({"loss": float("inf")}, "not-finite", "loss not finite"),
    ],
)
def test_troubles_have_names_and_limits(change: dict[str, float], name: str, words: str) -> None:
    (trouble,) = find_troubles(FINE | change, 30.0, CONFIG)
    assert trouble.name == name
    assert words in trouble.found
    assert trouble.advice


def test_a_fine_step_is_no_trouble() -> None:
    assert find_troubles(FINE, 30.0, CONFIG) == []
    assert find_troubles({"loss": 0.0, "grad_norm": 0.0}, None, CONFIG) == []  # nothing else was logged
    assert find_troubles(FINE | {"answers/yes": 0.5, "answers/unreadable": 0.1}, 30.0, CONFIG) == []
    assert find_troubles(FINE | {"answers/yes": 0.1, "answers/unreadable": 0.5}, 30.0, CONFIG) == []
    assert find_troubles(FINE | {"answers/yes": 0.0, "answers/unreadable": 1.0}, 30.0, CONFIG) == []


def test_it_warns_and_then_stops_and_starts_anew_after_a_good_step() -> None:
    watchdogs, bad = Watchdogs(CONFIG), FINE | {"kl": 50.0}
    rows = [bad, bad, FINE, bad, bad, bad, bad]
    told = [[(alarm.steps, alarm.stops) for alarm in watchdogs.take(row)] for row in rows]
    assert told == [[], [(2, False)], [], [], [(2, False)], [], [(4, True)]]
    only = Watchdogs(CONFIG.model_copy(update={"action": "warn"}))
    assert [alarm.stops for _ in range(30) for alarm in only.take(bad)] == [False] * 3  # steps 2, 12 and 22


def test_steps_of_one_question_each_are_no_collapse_of_answers() -> None:
    """All eight answers to a question are the same where it is known; to the next question they are the others."""
    watchdogs = Watchdogs(CONFIG)
    assert [alarm for step in range(19) for alarm in watchdogs.take(FINE | {"answers/yes": float(step % 2)})] == []
    told = [alarm.stops for _ in range(4) for alarm in watchdogs.take(FINE | {"answers/yes": 1.0})]
    assert told == [False, True]


def test_updates_that_are_not_finite_are_told_at_once() -> None:
    bad = FINE | {"grad_norm": float("nan")}
    watchdogs = Watchdogs(CONFIG)
    assert [[alarm.stops for alarm in watchdogs.take(bad)] for _ in range(3)] == [[False], [], [True]]
    assert [alarm.stops for alarm in Watchdogs(CONFIG, can_skip=False).take(bad)] == [True]


class Recording(NullReporter):
    """Keeps what is reported."""

    def __init__(self) -> None:
        self.metrics: list[tuple[int | None, dict[str, float]]] = []
        self.files: list[str] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Keep."""
        self.metrics.append((step, dict(metrics)))

    def log_artifact(self, path: Path) -> None:
        """Keep."""
        self.files.append(path.name)


@pytest.fixture
def start(tmp_path: Path) -> Any:
    """Build a callback, and tell it that training begins at a step."""
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(distributed_type="NO"), samples=lambda: [{"completion": "red red red"}]
    )

    def run(reporter: Recording, step: int = 0, config: WatchdogsConfig = CONFIG) -> Any:
        journal = Journal(tmp_path / "metrics.jsonl")
        callback = WatchdogCallback(config, trainer, journal, reporter, tmp_path, rename_metrics)
        state: Any = SimpleNamespace(global_step=step, is_world_process_zero=True)
        arguments: Any = None
        callback.on_train_begin(arguments, state, arguments)

        def log(step: int, row: dict[str, float]) -> None:
            state.global_step = step
            journal.append([{"step": step, **rename_metrics(row)}])
            callback.on_log(arguments, state, arguments, logs=dict(row))

        return log

    return run


def test_the_evidence_is_saved_and_the_error_says_what_to_do(start: Any, tmp_path: Path) -> None:
    reporter = Recording()
    log = start(reporter)
    log(1, FINE)
    for step in (2, 3, 4):
        log(step, FINE | {"hacks/degenerate": 0.95})
    with pytest.raises(WatchdogError, match=r"degenerate-text: 0\.95 .*in 4 steps up to step 5\. raise .*evidence"):
        log(5, FINE | {"hacks/degenerate": 0.95})
    folder = tmp_path / "evidence" / "step-000005"
    assert json.loads((folder / "completions.jsonl").read_text())["completion"] == "red red red"
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5]
    reason = json.loads((folder / "reason.json").read_text())
    assert reason["alarms"][0]["name"] == "degenerate-text"
    assert reason["limits"]["stop_after"] == 4
    assert reporter.metrics == [(step, {"watchdog/degenerate-text": float(step - 1)}) for step in (3, 5)]
    assert sorted(reporter.files) == ["completions.jsonl", "metrics.jsonl", "reason.json"]


def test_a_run_that_goes_on_counts_on(start: Any) -> None:
    log = start(Recording())
    for step in (1, 2, 3):
        log(step, FINE | {"grad_norm": float("nan"), "kl": 50.0} if step < 3 else FINE | {"kl": 50.0})
    again = start(Recording(), step=3)
    with pytest.raises(WatchdogError, match="kl-blow-up: 50"):
        again(4, FINE | {"kl": 50.0})
    start(Recording(), step=3, config=CONFIG.model_copy(update={"action": "off"}))(4, FINE | {"kl": 50.0})


def test_the_limits_do_not_identify_the_stage() -> None:
    assert identity(WatchdogsConfig(max_kl=1.0)) == identity(WatchdogsConfig()) == {"type": "WatchdogsConfig"}
