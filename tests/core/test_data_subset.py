"""Subsets of a wanted size, lists of one's own, and the proof that training and held-out concepts share nothing."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lewis_core.artifacts import digest_json
from lewis_core.config.data import SplitConfig, SubsetConfig
from lewis_core.data.duplicates import Duplicate
from lewis_core.data.splits import choose_splits, prove_disjoint, split_concepts
from lewis_core.data.subset import choose_subset
from lewis_core.errors import DataError
from lewis_core.records import Catalog, Concept, ImageRecord, Splits, load_record
from lewis_core.testing import publish_files


def concept(concept_id: str, train: int, test: Sequence[str] = ()) -> Concept:
    """A concept with photos of its own, and test photos with the given digests."""
    category, _, name = concept_id.partition("/")
    own = [f"{concept_id}-{n}" for n in range(train)]
    photos = [ImageRecord(path=f"{concept_id}/{sha256}.jpg", sha256=sha256, width=8, height=8) for sha256 in own]
    others = [ImageRecord(path=f"test/{concept_id}/{sha256}.jpg", sha256=sha256, width=8, height=8) for sha256 in test]
    return Concept(category=category, category_word=category, name=name, train=tuple(photos), test=tuple(others))


def make_catalog(sizes: dict[str, int]) -> Catalog:
    return Catalog(concepts=tuple(concept(concept_id, size) for concept_id, size in sorted(sizes.items())))


def photos(chosen: Sequence[Concept]) -> int:
    return sum(len(one.train) for one in chosen)


def test_a_subset_by_hand() -> None:
    concepts = make_catalog({"bag/a": 1, "bag/b": 2, "bag/c": 9, "mug/d": 4, "mug/e": 6}).concepts
    for wanted, expected in (
        (6, {"bag/b", "mug/d"}),
        (100, {"bag/c", "mug/e"}),
        (1, {"bag/a", "mug/d"}),  # one of each category: 1 + 4 is the least
    ):
        chosen = choose_subset(concepts, SubsetConfig(num_concepts=2, train_images=wanted), seed=0)
        assert {one.id for one in chosen} == expected
    free = SubsetConfig(num_concepts=2, train_images=3, cover_categories=False)
    assert {one.id for one in choose_subset(concepts, free, seed=0)} == {"bag/a", "bag/b"}


@settings(max_examples=60)
@given(
    sizes=st.lists(st.tuples(st.sampled_from("xyz"), st.integers(0, 9)), min_size=1, max_size=9),
    wanted=st.integers(1, 9),
    images=st.integers(1, 40),
    cover=st.booleans(),
    seed=st.integers(0, 3),
)
def test_no_other_subset_is_closer(
    sizes: list[tuple[str, int]], wanted: int, images: int, cover: bool, seed: int
) -> None:
    concepts = make_catalog({f"{category}/{n}": size for n, (category, size) in enumerate(sizes)}).concepts
    config = SubsetConfig(num_concepts=wanted, train_images=images, cover_categories=cover)
    categories = {one.category for one in concepts}
    if wanted > len(concepts) or (cover and wanted < len(categories)):
        with pytest.raises(DataError, match=r"splits\.subset\.num_concepts"):
            choose_subset(concepts, config, seed)
        return
    chosen = choose_subset(concepts, config, seed)
    assert len({one.id for one in chosen}) == wanted
    assert not cover or {one.category for one in chosen} == categories
    allowed = [
        photos(some)
        for some in combinations(concepts, wanted)
        if not cover or {one.category for one in some} == categories
    ]
    assert abs(photos(chosen) - images) == min(abs(total - images) for total in allowed)
    assert chosen == choose_subset(concepts, config, seed)


def test_a_subset_as_large_as_perva_s() -> None:
    """30 of 329 concepts of 21 categories, 1000 photos: the reference's own setting."""
    sizes = {f"c{number % 21:02d}/{number:03d}": 3 + (number * 37) % 60 for number in range(329)}
    concepts = make_catalog(sizes).concepts
    found = {choose_subset(concepts, SubsetConfig(), seed) for seed in range(3)}
    assert len(found) == 3
    assert {photos(chosen) for chosen in found} == {1000}
    assert {len({one.category for one in chosen}) for chosen in found} == {21}


def test_too_many_sums_are_refused() -> None:
    concepts = make_catalog({f"bag/{number:04d}": 20 for number in range(2000)}).concepts
    with pytest.raises(DataError, match=r"needs too much memory; name the concepts with splits\.training"):
        choose_subset(concepts, SubsetConfig(num_concepts=1000), seed=0)


def test_the_others_of_a_subset_are_not_used() -> None:
    catalog = make_catalog({f"{category}/{n}": 2 + n for category in ("bag", "mug") for n in range(8)})
    plain = choose_splits(catalog, SplitConfig())
    small = choose_splits(catalog, SplitConfig(subset=SubsetConfig(num_concepts=3, train_images=12)))
    assert small.held_out == plain.held_out
    assert set(small.training) | set(small.unused) == set(plain.training)
    assert (len(small.training), len(small.unused)) == (3, 5)
    assert photos(catalog.select(small.training).concepts) == 12


def test_lists_of_one_s_own() -> None:
    catalog = make_catalog({"bag/a": 1, "bag/b": 1, "mug/c": 1, "mug/d": 1})
    one_list = choose_splits(catalog, SplitConfig(training=("mug/d", "bag/a")))
    assert (one_list.training, one_list.held_out, one_list.unused) == (("bag/a", "mug/d"), ("bag/b", "mug/c"), ())
    two_lists = choose_splits(catalog, SplitConfig(training=("bag/a",), held_out=("mug/c",)))
    assert (two_lists.training, two_lists.held_out, two_lists.unused) == (("bag/a",), ("mug/c",), ("bag/b", "mug/d"))
    kept = choose_splits(catalog, SplitConfig(held_out=("bag/a",), min_concepts=2))
    assert "bag/a" not in kept.training and kept.held_out == ("bag/a",)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        pytest.param(
            {"training": ("bag/aa",)}, r"splits\.training names 1 .*: bag/aa; did you mean bag/a\?", id="typo"
        ),
        pytest.param({"held_out": ("zzzzz",)}, r"splits\.held_out names 1 .*; there are bag/a, bag/b", id="unknown"),
        pytest.param(
            {"training": ("bag/a",), "held_out": ("bag/a",)}, r"in splits\.training and in .*: bag/a", id="both"
        ),
        pytest.param({"training": ("bag/a", "bag/b")}, "lists every concept; leave some out", id="nothing-held-out"),
    ],
)
def test_wrong_lists_are_named(config: dict[str, tuple[str, ...]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        choose_splits(make_catalog({"bag/a": 1, "bag/b": 1}), SplitConfig.model_validate(config))


def test_a_record_refuses_concepts_on_two_sides() -> None:
    with pytest.raises(ValidationError, match="both used and unused"):
        Splits(training=("a",), held_out=("b",), unused=("a",))


def run(tmp_path: Path, catalog: Catalog, config: SplitConfig, near: tuple[Duplicate, ...] = ()) -> dict[str, object]:
    lines = "".join(one.model_dump_json() + "\n" for one in near)
    files = {"catalog.json": catalog.model_dump_json(), "near_duplicates.jsonl": lines}
    ref = publish_files(tmp_path / "store", "build-catalog", files)
    (tmp_path / "out").mkdir(exist_ok=True)
    return split_concepts(ref, tmp_path / "out", config)


def test_the_manifest_proves_that_nothing_is_shared(tmp_path: Path) -> None:
    catalog = Catalog(concepts=(concept("bag/a", 2), concept("bag/b", 1, test=["t"]), concept("bag/c", 1)))
    config = SplitConfig(training=("bag/a",))
    near = Duplicate(
        pictures=("bag/a-0", "t"), paths=("x", "y"), across_concepts=True, across_splits=True, among_negatives=False
    )
    assert run(tmp_path, catalog, config, (near,)) == {
        "training": 1,
        "held_out": 2,
        "unused": 0,
        "training_images": 2,
        "shared_concepts": 0,
        "shared_pictures": 0,
        "shared_looks": 1,
        "training_concepts_sha256": digest_json(["bag/a"]),
        "held_out_concepts_sha256": digest_json(["bag/b", "bag/c"]),
        "training_pictures": 2,
        "held_out_pictures": 3,
        "training_pictures_sha256": digest_json(["bag/a-0", "bag/a-1"]),
        "held_out_pictures_sha256": digest_json(["bag/b-0", "bag/c-0", "t"]),
    }
    assert load_record(tmp_path / "out/splits.json", Splits).training == ("bag/a",)


def test_a_picture_on_both_sides_stops_the_run_unless_it_is_accepted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    catalog = Catalog(concepts=(concept("bag/a", 2), concept("bag/b", 1, test=["bag/a-1"])))
    message = "1 pictures are of a training concept and of a held-out one: bag/a/bag/a-1.jpg, test/bag/b/bag/a-1.jpg"
    with pytest.raises(DataError, match=message):
        run(tmp_path, catalog, SplitConfig(training=("bag/a",)))
    assert not (tmp_path / "out/splits.json").exists()
    summary = run(tmp_path, catalog, SplitConfig(training=("bag/a",), shared_images="report"))
    assert summary["shared_pictures"] == 1
    assert message in caplog.text


def test_the_proof_notices_what_is_shared() -> None:
    catalog = Catalog(concepts=(concept("bag/a", 1), concept("bag/b", 0, test=["bag/a-0"])))
    proof = prove_disjoint(catalog, Splits(training=("bag/a",), held_out=("bag/b",)))
    assert (proof["shared_concepts"], proof["shared_pictures"], proof["shared_looks"]) == (0, 1, 0)
