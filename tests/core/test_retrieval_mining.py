"""Look-alikes by hand: six pictures on a circle, three concepts; and against slow, plain searches."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.bench.data_mining import make_pictures, mine_like_reference
from lewis_core.config.data import MiningConfig
from lewis_core.errors import DataError
from lewis_core.records import Catalog, Concept, ImageRecord
from lewis_core.retrieval import nearest
from lewis_core.retrieval.mining import CandidateRow, mine_rows, order_positives
from lewis_core.retrieval.nearest import concept_means, concepts_of_nearest_images, nearest_concepts, pick_images
from lewis_core.retrieval.pictures import Pictures, gather_negatives, gather_pictures, leave_out
from lewis_core.retrieval.strategies import choose_images, choose_random
from lewis_core.retrieval.vectors import DECIMALS


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


def test_hard_shortlists_concepts_by_their_mean_and_takes_the_best_image_of_each() -> None:
    rows = mine(MiningConfig(shortlist=1), *CIRCLE)
    # a0 at 0°: c is nearer on average (30° and 40°) than b (20° and 80°), although b's picture at 20° is the nearest
    assert shas(rows["a0"]) == ["c0"]
    assert rows["a0"].distractors[0].similarity == pytest.approx(math.cos(math.radians(30)), abs=1e-6)
    assert shas(rows["b1"]) == ["c1"]  # b1 at 80°: c's average is nearer than a's; its picture at 40° is the best
    rows = mine(MiningConfig(), *CIRCLE)
    assert shas(rows["a0"]) == ["b0", "c0"]  # of the shortlisted, the nearest image comes first
    assert [candidate.concept for candidate in rows["a0"].distractors] == ["bag/b", "bag/c"]


def test_nearest_image_ranks_concepts_by_their_best_image() -> None:
    assert shas(mine(MiningConfig(strategy="nearest-image"), *CIRCLE)["a0"]) == ["b0", "c0"]
    assert shas(mine(MiningConfig(strategy="nearest-image", pool=1), *CIRCLE)["a0"]) == ["b0"]


def test_the_pool_is_cut_after_the_nearest() -> None:
    assert shas(mine(MiningConfig(pool=1), *CIRCLE)["a0"]) == ["b0"]
    rows = mine(MiningConfig(pool=1), 0, 10, 20, 30, concepts=[concept("a", ["a0", "a1", "a2"]), concept("b", ["b"])])
    assert len(rows["a0"].positives) == 1


def test_easy_queries_take_the_least_similar_image_of_each_shortlisted_concept() -> None:
    rows = mine(MiningConfig(easy_frac=1), *CIRCLE)
    assert shas(rows["a0"]) == ["b1", "c1"]  # at 80° and at 40°: the farthest first
    triple = [concept("a", ["a0", "a1", "a2"]), B]
    rows = mine(MiningConfig(easy_frac=1, positive="hardest"), 0, 10, 50, 20, 80, concepts=triple)
    assert [candidate.image.sha256 for candidate in rows["a0"].positives] == ["a1", "a2"]  # the nearest view first


def test_ties_go_to_the_lower_index() -> None:
    concepts = [concept("a", ["a0"]), concept("b", ["b0", "b1"]), concept("c", ["c0"])]
    pictures = gather(concepts, 0, 30, 30, 30)
    assert pick_images(pictures, np.array([0]), np.array([1])).tolist() == [1]
    for strategy in ("hard", "nearest-image"):
        row = next(mine_rows(pictures, MiningConfig(strategy=strategy, pool=1, shortlist=1)))
        assert shas(row) == ["b0"]


def test_a_tie_in_single_precision_is_decided_in_double_precision() -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal(64)
    almost = base + 1e-7 * rng.standard_normal((40, 64))  # differ by less than single precision's products resolve
    vectors = np.concatenate([[base], almost]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    concepts = [concept(f"c{index:02d}", [f"p{index:02d}"]) for index in range(41)]
    pictures = gather_pictures(concepts, vectors, {f"p{index:02d}": index for index in range(41)})
    assert slow_search(pictures, 0, 5) == [1, 2, 3, 4, 5]  # equal when rounded, so the lower index wins
    for search in (nearest_concepts, concepts_of_nearest_images):
        assert sorted(search(pictures, 5)[0].tolist()) == [1, 2, 3, 4, 5]


def slow_search(pictures: Pictures, query: int, count: int) -> list[int]:
    """Concepts of the nearest images, one comparison at a time."""
    best: dict[int, float] = {}
    for image, label in enumerate(pictures.labels.tolist()):
        if label != pictures.labels[query]:
            exact = pictures.vectors[image].astype(np.float64) @ pictures.vectors[query].astype(np.float64)
            best[label] = max(best.get(label, -2.0), round(float(exact), DECIMALS))
    return sorted(sorted(best, key=lambda label: (-best[label], label))[:count])


@pytest.mark.parametrize("cells", [1, 100, 1 << 22])
def test_blocks_of_any_size_find_what_a_slow_search_finds(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "CELLS", cells)
    pictures = make_pictures(90, 3, 8)
    found = concepts_of_nearest_images(pictures, 4)
    assert [sorted(row) for row in found.tolist()] == [slow_search(pictures, query, 4) for query in range(90)]
    choice = choose_images(pictures, found, 3)
    for query, row in enumerate(choice.images.tolist()):
        exact = np.round(
            pictures.vectors[row].astype(np.float64) @ pictures.vectors[query].astype(np.float64), DECIMALS
        )
        assert exact.tolist() == choice.similarity[query].tolist() == sorted(exact, reverse=True)


@pytest.mark.parametrize("dimensions", [6, 512], ids=["plain-products", "products-in-pieces"])
def test_choices_are_those_of_the_reference(dimensions: int) -> None:
    pictures = make_pictures(48, 8, dimensions)  # six classes, fewer than the reference looks at
    means = concept_means(pictures).astype(np.float32)
    config = MiningConfig(pool=2, positive="hardest")
    for query, row in enumerate(mine_rows(pictures, config)):
        expected, view = mine_like_reference(
            pictures.vectors, pictures.labels, query, means, 2, lambda image: pictures.vectors[image]
        )
        assert shas(row) == [pictures.images[image].sha256 for image in expected]
        assert row.positives[0].image == pictures.images[view]


def test_means_are_averages_of_pictures() -> None:
    pictures = gather([concept("a", ["a0", "a1"]), concept("b", ["b0"])], 0, 90, 180)
    assert concept_means(pictures).tolist() == [pytest.approx([0.5, 0.5]), pytest.approx([-1, 0], abs=1e-6)]


@pytest.mark.parametrize(
    ("preferred", "expected"),
    [
        pytest.param("hardest", ["c", "a", "b"], id="least-similar-first"),
        pytest.param("easiest", ["a", "b", "c"], id="most-similar-first-ties-by-index"),
    ],
)
def test_order_of_positives(preferred: str, expected: list[str]) -> None:
    order = order_positives(np.array([1.0, 0.9, 0.9, 0.2]), np.array([1, 2, 3]), preferred, None)
    assert [" abc"[index] for index in order] == expected


def test_random_positives_are_seeded_by_the_query() -> None:
    many = [concept("a", [f"a{index}" for index in range(9)]), B]
    first, again, other = (
        mine(MiningConfig(positive="random", seed=seed), *range(11), concepts=many) for seed in (1, 1, 2)
    )
    orders = [[candidate.image.sha256 for candidate in rows["a0"].positives] for rows in (first, again, other)]
    assert sorted(orders[0]) == [f"a{index}" for index in range(1, 9)]
    assert orders[0] == orders[1] != orders[2]


def test_random_distractors_are_of_different_concepts() -> None:
    pictures = gather([A, B, C], *CIRCLE)
    found = {tuple(choose_random(pictures, 2, seed).images[0].tolist()) for seed in range(40)}
    assert {frozenset(pictures.labels[list(pair)].tolist()) for pair in found} == {frozenset({1, 2})}
    assert len(found) == 8  # two orders of two concepts, two images of each


def elsewhere() -> Pictures:
    """Two hats and a hundred shoes."""
    names = [("hat", f"h{index}") for index in range(2)] + [("shoe", f"s{index:03d}") for index in range(100)]
    concepts = [
        Concept(category=category, category_word=category, name=name, train=(picture(name),))
        for category, name in names
    ]
    vectors = np.tile(on_circle(45), (102, 1))
    return gather_pictures(concepts, vectors, {name: row for row, (_, name) in enumerate(names)})


def test_cross_category_queries_draw_a_category_then_a_concept() -> None:
    pictures, others = gather([A, B, C], *CIRCLE), elsewhere()
    kinds = Counter[str]()
    for seed in range(200):
        config = MiningConfig(cross_category_frac=1, pool=1, seed=seed)
        row = next(mine_rows(pictures, config, others))
        kinds[row.distractors[0].concept.split("/")[0]] += 1
        assert row.distractors[0].similarity == pytest.approx(math.cos(math.radians(45)), abs=1e-6)
    assert set(kinds) == {"hat", "shoe"}
    assert 70 < kinds["hat"] < 130  # every second, although there are fifty times as many shoes
    row = next(mine_rows(pictures, MiningConfig(cross_category_frac=1, pool=200), others))
    assert len({candidate.concept for candidate in row.distractors}) == len(row.distractors) == 102
    alone = next(mine_rows(pictures, MiningConfig(cross_category_frac=1)))
    assert alone.degenerate == "no concepts of other categories"


def test_a_picture_of_this_category_is_not_taken_from_another() -> None:
    pictures = gather([A, B, C], *CIRCLE)
    left = leave_out(elsewhere(), [picture("s000"), picture("h1")])
    assert len(left.concepts) == len(left.images) == 100
    assert left.labels.tolist() == list(range(100))
    assert leave_out(pictures, pictures.images).concepts == ()


def test_negatives_of_the_concept_come_first_and_the_nearest_of_no_concept_next() -> None:
    a = A.model_copy(update={"hard_negative": (picture("far"),), "negative": (picture("near"), picture("b0"))})
    catalog = Catalog(concepts=(a, B), negatives=(picture("web1"), picture("web0"), picture("near")))
    names = ["a0", "a1", "b0", "b1", "far", "near", "web0", "web1"]
    matrix, rows = on_circle(0, 10, 20, 80, 60, 50, 1, 2), {name: row for row, name in enumerate(names)}
    pictures = gather_pictures([a, B], matrix, rows)
    negatives = gather_negatives(pictures, catalog, matrix, rows)
    assert [image.sha256 for image in negatives.images] == ["far", "near", "web1", "web0", "near"]  # b0 is a photo of b
    mined = {row.query.sha256: row for row in mine_rows(pictures, MiningConfig(negatives_frac=1), None, negatives)}
    assert shas(mined["a0"]) == ["near", "far", "web0", "web1"]
    assert shas(mined["b1"]) == ["near", "web1", "web0"]
    assert {candidate.concept for candidate in mined["a0"].distractors} == {""}
    assert next(mine_rows(pictures, MiningConfig(negatives_frac=1))).degenerate == "no negatives"


def test_shares_are_of_queries_or_of_distractors() -> None:
    pictures, others = make_pictures(600, 3, 2), elsewhere()

    def kinds(mix: str) -> list[set[str]]:
        config = MiningConfig(cross_category_frac=0.3, easy_frac=0.3, pool=4, mix=mix)
        rows = mine_rows(pictures, config, others)
        return [{candidate.concept.split("/")[0] == "thing" for candidate in row.distractors} for row in rows]

    by_query, by_distractor = kinds("query"), kinds("distractor")
    assert all(len(found) == 1 for found in by_query)
    assert 0.25 < sum(found == {False} for found in by_query) / 600 < 0.35
    mixed = sum(len(found) == 2 for found in by_distractor) / 600
    assert 0.70 < mixed < 0.81  # 1 - 0.7^4 - 0.3^4 = 0.75
    plain = [row.distractors for row in mine_rows(pictures, MiningConfig(pool=4))]
    some = MiningConfig(pool=4, cross_category_frac=0.3)
    same = [row.distractors == plain[query] for query, row in enumerate(mine_rows(pictures, some, others))]
    assert 0.65 < sum(same) / 600 < 0.75  # the others are as they are without shares


def test_shares_cannot_exceed_the_whole() -> None:
    with pytest.raises(ValueError, match=r"add up to 1\.2, more than 1"):
        MiningConfig(easy_frac=0.6, cross_category_frac=0.6)


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
    rows = list(mine_rows(gather_pictures([twice, B], on_circle(0, 1, 2), {"x": 0, "b0": 1, "b1": 2}), MiningConfig()))
    assert [row.query.path for row in rows] == ["1", "b0.jpg", "b1.jpg"]
    assert rows[0].degenerate == "no second view"


def test_a_category_with_one_concept_has_no_look_alikes() -> None:
    rows = mine(MiningConfig(), 0, 10, concepts=[A])
    assert {row.degenerate for row in rows.values()} == {"no look-alikes"}


@pytest.mark.parametrize("strategy", ["hard", "nearest-image", "random"])
def test_a_picture_that_the_query_has_as_well_is_no_distractor(strategy: str) -> None:
    config = MiningConfig(strategy=strategy)
    shared = concept("b", ["a1", "b1"])
    rows = list(mine_rows(gather_pictures([A, shared], on_circle(0, 10, 90), {"a0": 0, "a1": 1, "b1": 2}), config))
    assert shas(rows[0]) == ["b1"]  # not a1, although it is nearer
    only_shared = concept("b", ["a1"])
    rows = list(mine_rows(gather_pictures([A, only_shared], on_circle(0, 10), {"a0": 0, "a1": 1}), config))
    assert rows[0].degenerate == "no look-alikes"
    assert shas(rows[2]) == ["a0"]  # b's a1 may be played against a's other photo


def test_no_concepts_no_rows() -> None:
    assert list(mine_rows(gather_pictures([], np.zeros((0, 2), np.float32), {}), MiningConfig())) == []


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
