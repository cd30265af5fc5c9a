"""Descriptions of reference photos, with a fake speaker."""

import pytest

from lewis_core.config.evaluation import DescribeConfig
from lewis_core.descriptions.generate import choose_concepts, choose_reference, describe
from lewis_core.errors import DataError
from lewis_core.prompts import CONCISE
from lewis_core.records import Concept, ImageRecord, Splits
from lewis_core.testing import FakeModel, make_catalog

CATALOG = make_catalog({"mug": 3, "bag": 3})
GOOD = "<thinking>I see it.</thinking> <coarse>A photo of a mug</coarse> <detailed>The mug is {}.</detailed>"


def speak(image: str | None, prompt: str) -> str:
    """Describe by photo; break the format for concept 2."""
    return "<coarse>A photo" if "secret02" in str(image) else GOOD.format(f"mark {str(image)[-8:-6]}")


def test_every_concept_is_described_from_its_reference() -> None:
    model = FakeModel(writes=speak)
    database = describe(CATALOG.concepts, "trained", model, CONCISE, DescribeConfig(), batch_size=4)
    assert database.speaker == "trained"
    assert [entry.concept for entry in database.entries] == sorted(concept.id for concept in CATALOG.concepts)
    assert sorted(set(model.asked)) == [CONCISE.speaker("bag"), CONCISE.speaker("mug")]
    for entry in database.entries:
        assert entry.reference.path.startswith("train/")
        if "secret02" not in entry.concept:
            assert entry.text == f"A photo of a mug. The mug is mark {entry.concept[-2:]}."


def test_a_malformed_text_stays_with_its_reason() -> None:
    database = describe(CATALOG.concepts, "base", FakeModel(writes=speak), CONCISE, DescribeConfig())
    [broken] = [entry for entry in database.entries if entry.description is None]
    assert broken.concept == "cat-mug/secret02"
    assert broken.completion == "<coarse>A photo"
    assert broken.error is not None and "<thinking>" in broken.error
    assert broken.text == ""


def concept(*photos: str) -> Concept:
    records = tuple(ImageRecord(path=path, sha256=path, width=1, height=1) for path in photos)
    return Concept(category="c", category_word="mug", name="n", train=records)


def test_the_reference_is_the_first_by_path_or_drawn_by_content() -> None:
    many = concept(*(f"train/c/n/{index}.jpg" for index in (3, 1, 2, 0, 4, 5, 6, 7)))
    assert choose_reference(many, DescribeConfig()).path == "train/c/n/0.jpg"
    drawn = [choose_reference(many, DescribeConfig(reference="random", seed=seed)).path for seed in range(20)]
    assert len(set(drawn)) > 3
    assert drawn[3] == choose_reference(many, DescribeConfig(reference="random", seed=3)).path


def test_held_out_concepts_unless_all_are_wanted() -> None:
    ids = [concept.id for concept in CATALOG.concepts]
    splits = Splits(training=tuple(ids[:4]), held_out=tuple(ids[4:]))
    assert [c.id for c in choose_concepts(CATALOG, splits, DescribeConfig())] == ids[4:]
    assert [c.id for c in choose_concepts(CATALOG, splits, DescribeConfig(concepts="all"))] == ids


def test_nothing_to_describe_is_an_error() -> None:
    splits = Splits(training=(), held_out=())
    with pytest.raises(DataError, match="nothing to describe"):
        choose_concepts(CATALOG, splits, DescribeConfig())
    with pytest.raises(DataError, match="no concept 'cat-mug/nobody'"):
        choose_concepts(CATALOG, Splits(training=(), held_out=("cat-mug/nobody",)), DescribeConfig())


def test_sampling_seeds_differ_between_concepts_and_not_between_runs() -> None:
    class Recorder(FakeModel):
        seeds: list[tuple[str | None, int]] = []

        def generate(self, items):
            self.seeds = [*self.seeds, *((item.image, item.seed) for item in items)]
            return super().generate(items)

    first, second = Recorder(writes=speak), Recorder(writes=speak)
    config = DescribeConfig(temperature=1.0)
    describe(CATALOG.concepts, "base", first, CONCISE, config)
    describe(CATALOG.concepts[::-1], "base", second, CONCISE, config, batch_size=1)
    assert first.seeds == second.seeds
    assert len({seed for _, seed in first.seeds}) == 6
