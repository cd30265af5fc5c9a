"""Training with real processes that are killed, and a full disk: it ends as if nothing had happened."""

from pathlib import Path

import pytest

from infra.chaos.training import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_training_that_everything_happens_to_equals_an_undisturbed_one(tmp_path: Path) -> None:
    found = run(tmp_path / "runs", steps=10)
    assert [fault.partition(": ")[2] for fault in found["faults"]] == [
        "the listener is killed and starts again",
        "the trainer is killed",
        "the disk is full",
        "the trainer is killed again",
        "the listener is killed and stays away",
    ]
    assert found["exit_statuses"] == [-9, -9, 75, 0]
    assert found["listener_starts"]["disturbed"] >= 3
    assert any("cannot be written" in line for line in found["warnings"])
    assert found["steps"] == list(range(1, 11))  # none lost, none twice
    assert found["equal"], found["different"]
