"""Look-alikes by hand: six pictures on a circle, three concepts."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lewis_core.config.data import MiningConfig
from lewis_core.errors import DataError
from lewis_core.records import Concept, ImageRecord
from lewis_core.retrieval.mining import (
    CandidateRow,
    Pictures,
    best_image_by_concept,
    choose_hard,
    choose_nearest_image,
    choose_random,
    concept_means,
    gather_pictures,
    mine_rows,
    order_positives,
)


def picture(sha256: str, path: str | None = None) -> ImageRecord:
    return ImageRecord(path=path or f"{sha256}.jpg", sha256=sha256, width=1, height=1)


def concept(name: str, train: Sequence[str], test: Sequence[str] = ()) -> Concept:
    return Concept(
        category="bag",
        category_word="bag",
        name=name,
        train=tuple(map(picture, train)),
        test=tuple(map(picture, test)),
    )


def on_circle(*degrees: float) -> np.ndarray:
    return np.array([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees], np.float32)


def gather(concepts: Sequence[Concept], *degrees: float) -> Pictures:
    """Pictures whose embeddings lie at the given angles, in the order of the concepts' photos."""
    names = [image.sha256 for item in concepts for image in (*item.train, *item.test)]
    return gather_pictures(concepts, on_circle(*degrees), {name: row for row, name in enumerate(names)})


A, B, C = concept("a", ["a0"], ["a1"]), concept("b", ["b0", "b1"]), concept("c", ["c0", "c1"])
# Angles: a 0° and 10°; b 20° and 80° (mean 50°); c 30° and 40° (mean 35°).
CIRCLE = (0, 10, 20, 80, 30, 40)


def mine(config: MiningConfig, *degrees: float, concepts: Sequence[Concept] = (A, B, C)) -> dict[str, CandidateRow]:
    return {row.query.sha256: row for row in mine_rows(gather(concepts, *degrees), config)}


def shas(row: CandidateRow) -> list[str]:
    return [candidate.image.sha256 for candidate in row.distractors]


def test_hard_ranks_concepts_by_their_mean_and_takes_the_best_image_of_each() -> None:
    rows = mine(MiningConfig(), *CIRCLE)
    # a0 at 0°: mean of c at 35° is nearer than that of b at 50°, although b's picture at 20° is nearer than c's at 30°
    assert shas(rows["a0"]) == ["c0", "b0"]
    assert [candidate.concept for candidate in rows["a0"].distractors] == ["bag/c", "bag/b"]
    assert rows["a0"].distractors[0].similarity == pytest.approx(math.cos(math.radians(30)), abs=1e-6)
    # b1 at 80°: c's mean (35°) before a's (5°); the pictures nearest to 80° are at 40° and 10°
    assert shas(rows["b1"]) == ["c1", "a1"]


def test_nearest_image_ranks_concepts_by_their_best_image() -> None:
    assert shas(mine(MiningConfig(strategy="nearest-image"), *CIRCLE)["a0"]) == ["b0", "c0"]


def test_the_pool_is_cut_after_the_nearest() -> None:
    assert shas(mine(MiningConfig(pool=1), *CIRCLE)["a0"]) == ["c0"]


def test_ties_go_to_the_lower_index() -> None:
    similarity, labels = np.array([0.5, 0.5, 0.5, 0.5]), np.array([0, 0, 1, 1])
    assert best_image_by_concept(similarity, np.arange(4), labels) == {0: 0, 1: 2}
    assert choose_hard(similarity, np.array([0.7, 0.7]), np.arange(4), labels, 2) == [0, 2]
    assert choose_nearest_image(similarity, np.arange(4), labels, 2) == [0, 2]


def test_means_are_normalised() -> None:
    # (1, 0) + (0, 1) = (1, 1), of length √2; opposite vectors cancel out; the last concept has no images
    vectors = np.array([[1.0, 0], [0, 1], [1, 0], [-1, 0]])
    means = concept_means(vectors, np.array([0, 0, 1, 1]), 3)
    assert means.tolist() == [pytest.approx([1 / math.sqrt(2)] * 2), [0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        pytest.param("hardest", ["c", "a", "b"], id="least-similar-first"),
        pytest.param("easiest", ["a", "b", "c"], id="most-similar-first-ties-by-index"),
    ],
)
def test_order_of_positives(policy: str, expected: list[str]) -> None:
    similarity = np.array([1.0, 0.9, 0.9, 0.2])
    order = order_positives(similarity, [1, 2, 3], MiningConfig(positive=policy))
    assert [" abc"[index] for index in order] == expected


def test_random_positives_are_seeded_by_the_query() -> None:
    views, config = list(range(8)), MiningConfig(positive="random")
    first = order_positives(np.zeros(8), views, config, "bag/a", "x")
    assert sorted(first) == views
    assert first == order_positives(np.zeros(8), views, config, "bag/a", "x")
    assert first != order_positives(np.zeros(8), views, config, "bag/a", "y")
    assert first != order_positives(np.zeros(8), views, MiningConfig(positive="random", seed=1), "bag/a", "x")


def test_random_distractors_are_of_different_concepts() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2])
    found = {tuple(choose_random(np.arange(6), labels, 2, seed, "q")) for seed in range(30)}
    assert all(labels[first] != labels[second] for first, second in found)
    assert len(found) > 10


def test_positives_are_the_other_views_only() -> None:
    row = mine(MiningConfig(positive="hardest"), *CIRCLE)["b0"]
    assert [candidate.image.sha256 for candidate in row.positives] == ["b1"]
    assert row.degenerate is None


def test_a_concept_with_one_photo_is_no_query_but_a_distractor() -> None:
    rows = mine(MiningConfig(), 0, 10, 20, concepts=[concept("a", ["a0"]), concept("b", ["b0", "b1"])])
    assert rows["a0"].degenerate == "no second view"
    assert rows["b0"].degenerate is None
    assert shas(rows["b0"]) == ["a0"]


def test_two_copies_of_a_photo_are_no_second_view() -> None:
    twice = Concept(
        category="bag", category_word="bag", name="a", train=(picture("x", "1"),), test=(picture("x", "2"),)
    )
    rows = mine_rows(gather_pictures([twice, B], on_circle(0, 1, 2), {"x": 0, "b0": 1, "b1": 2}), MiningConfig())
    assert [row.query.path for row in rows] == ["1", "b0.jpg", "b1.jpg"]
    assert rows[0].degenerate == "no second view"


def test_a_category_with_one_concept_has_no_look_alikes() -> None:
    rows = mine(MiningConfig(), 0, 10, concepts=[A])
    assert {row.degenerate for row in rows.values()} == {"no look-alikes"}


def test_a_picture_that_the_query_has_as_well_is_no_distractor() -> None:
    shared = concept("b", ["a1", "b1"])
    rows = mine_rows(gather_pictures([A, shared], on_circle(0, 10, 90), {"a0": 0, "a1": 1, "b1": 2}), MiningConfig())
    assert shas(rows[0]) == ["b1"]  # not a1, although it is nearer
    only_shared = concept("b", ["a1"])
    rows = mine_rows(gather_pictures([A, only_shared], on_circle(0, 10), {"a0": 0, "a1": 1}), MiningConfig())
    assert rows[0].degenerate == "no look-alikes"


def test_no_concepts_no_rows() -> None:
    assert mine_rows(gather_pictures([], np.zeros((0, 2), np.float32), {}), MiningConfig()) == []


def test_a_photo_without_embedding_is_an_error() -> None:
    with pytest.raises(DataError, match=r"1 photos have no embedding, e\.g\. a1\.jpg"):
        gather_pictures([A], on_circle(0), {"a0": 0})


@given(seed=st.integers(0, 10), strategy=st.sampled_from(["hard", "nearest-image", "random"]), pool=st.integers(1, 4))
def test_rows_are_complete_and_never_mix_concepts(seed: int, strategy: str, pool: int) -> None:
    rng = np.random.default_rng(seed)
    concepts = [concept(f"c{i}", [f"{i}-{j}" for j in range(int(rng.integers(1, 4)))]) for i in range(4)]
    count = sum(len(item.train) for item in concepts)
    rows = list(
        mine(MiningConfig(strategy=strategy, pool=pool), *rng.uniform(0, 360, count), concepts=concepts).values()
    )
    assert len(rows) == count
    for row in rows:
        own = {candidate.concept for candidate in row.positives}
        others = [candidate.concept for candidate in row.distractors]
        assert own <= {row.concept}
        assert row.concept not in others
        assert len(others) == len(set(others)) == min(pool, 3)
