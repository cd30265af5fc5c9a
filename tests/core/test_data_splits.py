"""Concept splits: counts by hand, seeded by content."""

import os
import subprocess
import sys
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lewis_core.config.data import SplitConfig
from lewis_core.data.splits import choose_concepts, choose_splits
from lewis_core.errors import DataError
from lewis_core.records import Catalog, Concept


def make_catalog(sizes: Mapping[str, int]) -> Catalog:
    ids = sorted((category, f"c{index:02d}") for category, size in sizes.items() for index in range(size))
    return Catalog(concepts=tuple(Concept(category=c, category_word=c, name=name) for c, name in ids))


@pytest.mark.parametrize(
    ("size", "frac", "expected"),
    [
        pytest.param(4, 0.5, 2, id="half-of-4"),
        pytest.param(5, 0.5, 3, id="half-of-5-rounds-up"),
        pytest.param(25, 0.28, 7, id="0.28-times-25-is-7-although-floats-say-7.000000000000001"),
        pytest.param(10, 0.01, 1, id="at-least-one"),
        pytest.param(10, 0.99, 9, id="never-all"),
        pytest.param(4, 0.9, 3, id="never-all-of-4"),
        pytest.param(3, 0.5, 0, id="too-small"),
    ],
)
def test_number_of_training_concepts(size: int, frac: float, expected: int) -> None:
    ids = [f"bag/c{index:02d}" for index in range(size)]
    assert len(choose_concepts(ids, "bag", SplitConfig(concept_frac=frac, min_concepts=4))) == expected


def test_small_categories_are_held_out() -> None:
    splits = choose_splits(make_catalog({"bag": 4, "mug": 3}), SplitConfig(min_concepts=4))
    assert len(splits.training) == 2
    assert all(concept.startswith("bag/") for concept in splits.training)
    assert {"mug/c00", "mug/c01", "mug/c02"} < set(splits.held_out)


def test_another_category_changes_nothing() -> None:
    alone = choose_splits(make_catalog({"bag": 8}), SplitConfig())
    both = choose_splits(make_catalog({"bag": 8, "mug": 8}), SplitConfig())
    assert [concept for concept in both.training if concept.startswith("bag/")] == list(alone.training)


def test_categories_choose_independently() -> None:
    splits = choose_splits(make_catalog({"bag": 8, "hat": 8, "mug": 8}), SplitConfig())
    names = [tuple(c.split("/")[1] for c in splits.training if c.startswith(k)) for k in ("bag/", "hat/", "mug/")]
    assert len(set(names)) == 3


def test_nothing_to_train_on_is_an_error_with_the_sizes() -> None:
    with pytest.raises(DataError, match=r"min_concepts = 4 concepts; found bag: 3, mug: 2"):
        choose_splits(make_catalog({"bag": 3, "mug": 2}), SplitConfig())


def test_seeds_differ() -> None:
    catalog = make_catalog({"bag": 10})
    assert len({choose_splits(catalog, SplitConfig(seed=seed)).training for seed in range(10)}) > 5


@given(
    sizes=st.dictionaries(st.sampled_from(["bag", "mug", "hat"]), st.integers(1, 12), min_size=1),
    frac=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
)
def test_splits_are_disjoint_and_complete(sizes: dict[str, int], frac: float, seed: int) -> None:
    catalog, config = make_catalog(sizes), SplitConfig(concept_frac=frac, seed=seed)
    if max(sizes.values()) < config.min_concepts:
        with pytest.raises(DataError):
            choose_splits(catalog, config)
        return
    splits = choose_splits(catalog, config)
    assert sorted([*splits.training, *splits.held_out]) == [concept.id for concept in catalog.concepts]
    for category, size in sizes.items():
        held_out = [concept for concept in splits.held_out if concept.startswith(f"{category}/")]
        assert 1 <= len(held_out) <= size


SPLIT = """
from lewis_core.config.data import SplitConfig
from lewis_core.data.splits import choose_concepts
print(choose_concepts([f"bag/c{index}" for index in range(9)], "bag", SplitConfig()))
"""


def test_the_choice_is_the_same_in_every_process() -> None:
    found = {
        subprocess.run(
            [sys.executable, "-c", SPLIT],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert found == {f"{choose_concepts([f'bag/c{index}' for index in range(9)], 'bag', SplitConfig())}\n"}
