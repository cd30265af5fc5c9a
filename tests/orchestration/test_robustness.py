"""Faults of real stage processes, a few of each kind: what ``python -m infra.robustness`` does at full size."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.robustness import faults, table
from infra.robustness.trial import Results, Workshop, is_close
from lewis_core.artifacts import ArtifactRef, ArtifactStore
from lewis_core.config.base import Runtime
from lewis_core.config.data import CatalogConfig, SplitConfig
from lewis_core.pipeline import BUILD_CATALOG, RENDER_PHOTOS, SPLIT_CONCEPTS
from lewis_core.pocket.config import PocketWorldConfig
from lewis_core.stages import Stage, run_stage, stage_key
from tasks.launch import LaunchSpec
from tasks.processes import process_scope
from tasks.stage import to_json

pytestmark = pytest.mark.slow


def record(shop: Workshop, stage: Stage, values: dict[str, Any], **arguments: Any) -> ArtifactRef:
    """Run a stage into the warm store, and write down what it was asked."""
    store, values = ArtifactStore(shop.warm / "store"), {"runtime": Runtime(num_workers=1), **values}
    ref = run_stage(stage, store, arguments, values)
    key = stage_key(stage, arguments)
    spec = LaunchSpec(
        stage=stage.name,
        function=stage.function,
        key=key,
        store=store.root,
        arguments=to_json(arguments),
        runtime=to_json(values),
    )
    (shop.warm / "specs").mkdir(exist_ok=True)
    (shop.warm / "specs" / f"{stage.name}-{key}.json").write_text(spec.model_dump_json())
    return ref


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """A workshop whose warm store holds three small stages."""
    made = Workshop(tmp_path_factory.mktemp("robustness"))
    world = PocketWorldConfig(categories=("mug", "bag"), concepts_per_category=4, train_photos=2, test_photos=1)
    photos = record(made, RENDER_PHOTOS, {}, config=world)
    catalog = record(made, BUILD_CATALOG, {"data_root": photos.path}, fingerprint=photos.digest, config=CatalogConfig())
    record(made, SPLIT_CONCEPTS, {}, catalog=catalog, config=SplitConfig())
    with process_scope():
        yield made


@pytest.fixture(scope="module")
def results(shop: Workshop) -> Results:
    """All trials of this module."""
    return Results(shop.folder / "faults.jsonl", float("inf"))


def bad(results: Results, fault: str, trials: int) -> list[dict[str, Any]]:
    """Trials of a fault that went wrong; there must be so many in all."""
    rows = [row for row in results.rows if row["fault"] == fault]
    assert len(rows) == trials
    return [row for row in rows if not row["ok"]]


def test_killed_stages_give_the_same_results_in_the_end(shop: Workshop, results: Results) -> None:
    calls = shop.calls()
    faults.measure(shop, results, calls)
    assert bad(results, "none", 3) == []
    seconds = {row["trial"]: row["seconds"] for row in results.rows}
    faults.kill(shop, results, calls, seconds, kills=2)
    assert [row for row in results.rows if row["fault"] == "kill -9" and not row["ok"]] == []


def test_every_damage_is_noticed(shop: Workshop, results: Results) -> None:
    faults.damage(shop, results, shop.calls())
    assert bad(results, "damaged file is noticed", 3) == []
    assert min(row["count"] for row in results.rows if row["fault"] == "damaged file is noticed") > 10


def test_a_damaged_input_is_refused_by_name(shop: Workshop, results: Results) -> None:
    faults.damage_input(shop, results, shop.calls(), others=1)
    assert bad(results, "damaged input", 1) == []


def test_a_full_disk_has_a_name_and_a_clock_that_jumps_changes_nothing(shop: Workshop, results: Results) -> None:
    faults.fill_disk(shop, results, shop.calls(), others=1)
    assert bad(results, "disk full", 1) == []
    [row] = [row for row in results.rows if row["fault"] == "disk full"]
    assert row["first"] == "named error StorageError"
    faults.change_time(shop, results, shop.calls(), others=1)
    assert bad(results, "clock jump", 1) == []


def test_trials_are_kept_and_told(shop: Workshop, results: Results, tmp_path: Path) -> None:
    again = Results(shop.folder / "faults.jsonl", float("inf"))
    assert again.rows == results.rows
    assert list(again.todo("none", [row["trial"] for row in results.rows if row["fault"] == "none"])) == []
    assert "| `kill -9` of a stage at a random moment | " in table.faults(again.rows)


def test_answers_are_compared_to_rounding() -> None:
    one: dict[str, Any] = {"a": [0.5, 1e-9, "x", None, True], "b": {"c": 3}}
    assert is_close(one, {"a": [0.5000001, 2e-9, "x", None, True], "b": {"c": 3}})
    for other in ({"a": [0.51, 1e-9, "x", None, True], "b": {"c": 3}}, {"a": one["a"][:4], "b": {"c": 3}}, {"b": {}}):
        assert not is_close(one, other)
