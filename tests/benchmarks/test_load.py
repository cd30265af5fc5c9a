"""The load benchmark at its smallest: it asks, is answered, overloads, and loses nothing."""

import json
from pathlib import Path

import pytest

from infra.bench import load


@pytest.mark.slow
def test_load_is_measured_and_nothing_is_lost(tmp_path: Path) -> None:
    words = ["--size", "tiny", "--seconds", "0.1", "--rates", "0.5", "3", "--deadline-s", "30", "--soak-s", "1"]
    load.main([*words, "--reference-requests", "1", "--descriptions", "1", "--candidates", "2", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "load-tiny-cpu.json").read_text())
    ours = [point for point in found["points"] if point["arm"] == load.OURS]
    assert [point["share"] for point in ours] == [0.5, 3]
    assert found["capacity_per_s"] > 0
    assert found["reference_capacity_per_s"] > 0
    assert all(point["failed"] == 0 for point in (*ours, found["soak"]))
    assert sum(point["answered"] for point in ours) > 0
    assert min(found["soak"]["rss_mib"]) > 0
    assert load.table(found).count("\n") == len(found["points"]) + 1
