"""Published data sets are read as they lie on disk: each fixture mimics one, name by name."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from lewis_core.config.base import Runtime
from lewis_core.config.data import CatalogConfig, GamesConfig, SplitConfig
from lewis_core.data.catalog import build_catalog
from lewis_core.data.layout import SetAside
from lewis_core.data.splits import choose_splits
from lewis_core.data.testing import run_chain
from lewis_core.data.vocabulary import DREAMBOOTH_WORDS, MYVLM_WORDS, PERVA_CATEGORIES, YOLLAVA_WORDS
from lewis_core.errors import CatalogError
from lewis_core.records import Catalog, Game, JsonObject, Splits, VqaItem, load_jsonl, load_record
from lewis_core.reporting import NullReporter
from lewis_core.seeding import stable_seed
from lewis_core.testing import write_image

ALL = "all"


def write(root: Path, *paths: str) -> None:
    """Write a picture of its own at each path."""
    for path in paths:
        write_image(root / path, stable_seed(0, path) % 2**31)


def build(root: Path, config: CatalogConfig = CatalogConfig()) -> tuple[JsonObject, Catalog, Path]:
    """Build in a fresh folder beside the root: summary, catalog, folder."""
    output = root.with_name(f"{root.name}-out{len(list(root.parent.iterdir()))}")
    output.mkdir()
    summary = build_catalog("f", output, config, root, Runtime(num_workers=2), NullReporter())
    return summary, load_record(output / "catalog.json", Catalog), output


def question(**changes: object) -> JsonObject:
    return {"question": "Is <sks> red?", "options": {"A": "Yes", "B": "No"}, "correct_answer": "A"} | changes


def write_perva(root: Path) -> None:
    for category in ("veg", "tro_bag", "toy"):
        for concept in ("alx", "bkq"):
            write(root, f"train_/{category}/{concept}/1.jpg", f"test_/{category}/{concept}/2.jpg")
    write(root, "train_/veg/alx/laion/000000012.jpg")


def write_yollava(root: Path) -> None:
    for concept in ("bo", "thao", "shiba-yellow"):
        for number in range(2):
            write(root, f"train/{concept}/{number}.png", f"test/{concept}/{number}.png")
        write(root, f"train/{concept}/negative_example/7.png")
        (root / f"train/{concept}/negative_example/scores.json").write_text(
            json.dumps([{"image": "7.png", "image_path": "7.png", "clip_score": 0.7}])
        )
    questions = {
        "bo": {"./yollava-data/test/bo/0.png": question()},
        "thao": {
            "data/YoLLaVA/test/all/thao/1.png": question(question="What is sks doing?", correct_answer="B"),
            "./yollava-data/test/thao/9.png": question(),
        },
    }
    (root / "yollava-visual-qa.json").write_text(json.dumps(questions))


def write_myvlm(root: Path) -> None:
    for concept in ("red_piggy_bank", "maeve_dog", "bull"):
        names = [f"IMG_{number}.jpg" for number in range(3)]
        write(root, *(f"{concept}/{name}" for name in names))
        (root / concept / "captions.json").write_text(json.dumps({name: ["S* on a table"] for name in names}))


def write_dreambooth(root: Path) -> None:
    write(root, *(f"{concept}/{n:02d}.jpg" for concept in ("backpack_dog", "dog6", "vase") for n in range(3)))
    (root / "prompts_and_classes.txt").write_text("Classes\n\nsubject_name,class\nvase,vase\n")


def write_this_is_my(root: Path) -> None:
    for concept in ("Alexs hat-hat", "Zaks dog kona-dog"):
        write(root, f"train/{concept}/1.png", f"test/Positive/{concept}/2.png", f"test/Negative (Hard)/{concept}/3.png")
        write(root, f"test/Fake/{concept}/4.png")
    write(root, "test/Negative (Other)/5.png")
    questions = {"Alexs hat": {"test/Positive/Alexs hat-hat/2.png": question()}}
    (root / "this-is-my-visual-qa-ambiguity.json").write_text(json.dumps(questions))


def write_flat(root: Path) -> None:
    write(root, *(f"{split}/{concept}/1.jpg" for split in ("train", "test") for concept in ("my mug", "her mug")))
    write(root, "laion/00000/000000001.jpg", "laion/00001/000010002.jpg")
    (root / "laion/00000/000000001.json").write_text("{}")
    (root / "laion/00000/000000001.txt").write_text("a mug")


@pytest.mark.parametrize(
    ("make", "name", "evidence", "words", "train_images"),
    [
        pytest.param(
            write_perva,
            "perva",
            [
                "train and test folders, images in <category>/<concept>, e.g. train_/toy/alx/1.jpg",
                "it holds train_ and test_, PerVA's spelling",
                "3 of 3 folders have names of PerVA's categories, e.g. toy",
            ],
            {"toy/alx": "toy", "tro_bag/bkq": "trolley bag", "veg/alx": "vegetable"},
            None,
            id="perva",
        ),
        pytest.param(
            write_yollava,
            "yollava",
            [
                "train and test folders, images in <concept>, e.g. train/bo/0.png",
                "3 of 3 folders have names of Yo'LLaVA's concepts, e.g. bo",
                "it holds yollava-visual-qa.json",
                "3 concept folders hold negative_example",
            ],
            {"all/bo": "pet animal", "all/thao": "person", "all/shiba-yellow": "toy"},
            None,
            id="yollava",
        ),
        pytest.param(
            write_myvlm,
            "myvlm",
            [
                "no train and test folders, images in <concept>, e.g. bull/IMG_0.jpg",
                "3 of 3 folders have names of MyVLM's objects, e.g. bull",
                "3 concept folders hold captions.json",
            ],
            {"all/red_piggy_bank": "piggy bank", "all/maeve_dog": "dog", "all/bull": "figurine"},
            2,
            id="myvlm",
        ),
        pytest.param(
            write_dreambooth,
            "dreambooth",
            [
                "no train and test folders, images in <concept>, e.g. backpack_dog/00.jpg",
                "3 of 3 folders have names of DreamBooth's subjects, e.g. backpack_dog",
                "it holds prompts_and_classes.txt",
            ],
            {"all/backpack_dog": "backpack", "all/dog6": "dog", "all/vase": "vase"},
            2,
            id="dreambooth",
        ),
        pytest.param(
            write_this_is_my,
            "this-is-my",
            [
                "train and test folders, test images by kind",
                "its test folder holds Fake, Negative (Hard), Negative (Other), Positive",
            ],
            {"all/Alexs hat-hat": "hat", "all/Zaks dog kona-dog": "dog"},
            None,
            id="this-is-my",
        ),
        pytest.param(
            write_flat,
            "flat",
            ["train and test folders, images in <concept>, e.g. train/her mug/1.jpg", "no sign of a known data set"],
            {"all/my mug": "object", "all/her mug": "object"},
            None,
            id="flat",
        ),
    ],
)
def test_a_data_set_is_recognised_and_read(
    tmp_path: Path,
    make: Callable[[Path], None],
    name: str,
    evidence: list[str],
    words: dict[str, str],
    train_images: int | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    make(tmp_path / "root")
    with caplog.at_level("INFO", "lewis_core"):
        summary, catalog, _ = build(tmp_path / "root", CatalogConfig(train_images=train_images))
    assert (summary["layout"], summary["layout_evidence"]) == (name, evidence)
    assert f"layout {name} (" in caplog.text
    found = {concept.id: concept.category_word for concept in catalog.concepts}
    assert {key: found[key] for key in words} == words
    assert all(concept.train and concept.test for concept in catalog.concepts)
    assert summary["quarantined"] == 0
    splits = choose_splits(catalog, SplitConfig(min_concepts=2))
    assert splits.training and splits.held_out


@pytest.mark.parametrize(
    ("make", "train_images"),
    [
        pytest.param(write_perva, None, id="perva"),
        pytest.param(write_yollava, None, id="yollava"),
        pytest.param(write_myvlm, 2, id="myvlm"),
        pytest.param(write_dreambooth, 2, id="dreambooth"),
        pytest.param(write_this_is_my, None, id="this-is-my"),
        pytest.param(write_flat, None, id="flat"),
    ],
)
def test_every_data_set_becomes_training_rows(
    tmp_path: Path, make: Callable[[Path], None], train_images: int | None
) -> None:
    make(tmp_path / "root")
    write(tmp_path / "root", *more_concepts(tmp_path / "root"))
    chain = run_chain(
        tmp_path / "root",
        tmp_path / "store",
        catalog_config=CatalogConfig(train_images=train_images),
        split_config=SplitConfig(min_concepts=2, concept_frac=0.6),
        games_config=GamesConfig(num_candidates=2),
    )
    training = set(load_record(chain.splits.file("splits.json"), Splits).training)
    games = load_jsonl(chain.games.file("games.jsonl"), Game)
    assert {game.concept for game in games} == training
    assert chain.dataset.summary["rows"] == len(games) > 0
    assert chain.splits.summary["shared_pictures"] == 0


def more_concepts(root: Path) -> list[str]:
    """Places of photos of one more concept beside each one that there is."""
    found = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.suffix in {".jpg", ".png"})
    negatives = ("laion", "negative_example", "Negative (Other)")
    return [re.sub(r"([^/]+)/([^/]+)$", r"\1 2/\2", path) for path in found if not any(n in path for n in negatives)]


def test_perva_negatives_belong_to_their_concept(tmp_path: Path) -> None:
    write_perva(tmp_path / "root")
    concept = build(tmp_path / "root")[1].concept("veg/alx")
    assert [image.path for image in concept.negative] == ["train_/veg/alx/laion/000000012.jpg"]


def test_yollava_questions_in_both_spellings_and_its_negatives(tmp_path: Path) -> None:
    write_yollava(tmp_path / "root")
    summary, catalog, output = build(tmp_path / "root")
    assert [image.path for image in catalog.concept("all/bo").negative] == ["train/bo/negative_example/7.png"]
    assert summary["other_files"] == 0  # scores.json belongs to its images
    assert [(i.concept, i.image, i.question, i.correct) for i in load_jsonl(output / "questions.jsonl", VqaItem)] == [
        ("all/bo", "test/bo/0.png", "Is <sks> red?", 0),
        ("all/thao", "test/thao/1.png", "What is <sks> doing?", 1),
    ]
    [aside] = load_jsonl(output / "quarantine.jsonl", SetAside)
    assert aside.path == "yollava-visual-qa.json: thao: ./yollava-data/test/thao/9.png"
    assert summary["malformed_questions"] == 1


def test_the_reference_s_pseudo_category_changes_nothing(tmp_path: Path) -> None:
    """The reference keeps Yo'LLaVA as ``train/all/<concept>``."""
    write_yollava(tmp_path / "flat")
    for split in ("train", "test"):
        (tmp_path / "nested" / split).mkdir(parents=True)
        (tmp_path / "flat" / split).rename(tmp_path / "nested" / split / ALL)
    (tmp_path / "flat/yollava-visual-qa.json").rename(tmp_path / "nested/yollava-visual-qa.json")
    summary, catalog, output = build(tmp_path / "nested")
    assert summary["layout"] == "yollava"
    assert {c.id: c.category_word for c in catalog.concepts}["all/bo"] == "pet animal"
    assert [item.image for item in load_jsonl(output / "questions.jsonl", VqaItem)] == [
        "test/all/bo/0.png",
        "test/all/thao/1.png",
    ]


def test_words_can_become_categories(tmp_path: Path) -> None:
    write_yollava(tmp_path / "root")
    summary, catalog, output = build(tmp_path / "root", CatalogConfig(flat_category="word"))
    assert [concept.id for concept in catalog.concepts] == ["person/thao", "pet_animal/bo", "toy/shiba-yellow"]
    assert summary["concepts_without_image"] == summary["empty_categories"] == []
    assert {item.concept for item in load_jsonl(output / "questions.jsonl", VqaItem)} == {
        "person/thao",
        "pet_animal/bo",
    }


def test_this_is_my_keeps_hard_negatives_apart(tmp_path: Path) -> None:
    write_this_is_my(tmp_path / "root")
    summary, catalog, output = build(tmp_path / "root")
    hat = catalog.concept("all/Alexs hat-hat")
    assert [image.path for image in hat.test] == ["test/Positive/Alexs hat-hat/2.png"]
    assert [image.path for image in hat.hard_negative] == [
        "test/Fake/Alexs hat-hat/4.png",
        "test/Negative (Hard)/Alexs hat-hat/3.png",
    ]
    assert [image.path for image in catalog.negatives] == ["test/Negative (Other)/5.png"]
    assert summary["negative_images"] == 5
    [item] = load_jsonl(output / "questions.jsonl", VqaItem)
    assert (item.concept, item.image) == ("all/Alexs hat-hat", "test/Positive/Alexs hat-hat/2.png")


def test_this_is_my_in_the_spelling_of_its_readme(tmp_path: Path) -> None:
    write_this_is_my(tmp_path / "root")
    (tmp_path / "root/train").rename(tmp_path / "root/Reference Images")
    (tmp_path / "root/test/Positive").rename(tmp_path / "root/test/positive")
    (tmp_path / "root/test").rename(tmp_path / "root/Validation")
    summary, _, _ = build(tmp_path / "root")
    assert (summary["layout"], summary["train_images"], summary["test_images"]) == ("this-is-my", 2, 2)


def test_negatives_of_nobody_are_read_to_any_depth_without_their_captions(tmp_path: Path) -> None:
    write_flat(tmp_path / "root")
    summary, catalog, _ = build(tmp_path / "root")
    assert [image.path for image in catalog.negatives] == ["laion/00000/000000001.jpg", "laion/00001/000010002.jpg"]
    assert (summary["negative_images"], summary["other_files"]) == (2, 0)


def test_signs_of_two_data_sets_are_an_error_that_the_settings_decide(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_dreambooth(root)
    (root / "vase/captions.json").write_text("{}")
    with pytest.raises(CatalogError, match=r"say which with catalog\.layout") as caught:
        build(root, CatalogConfig(train_images=2))
    assert "myvlm (MyVLM): 1 concept folders hold captions.json" in str(caught.value)
    assert "dreambooth (DreamBooth): 3 of 3 folders have names of DreamBooth's subjects" in str(caught.value)
    summary, _, _ = build(root, CatalogConfig(train_images=2, layout="dreambooth"))
    assert (summary["layout"], summary["layout_evidence"]) == ("dreambooth", ["catalog.layout says so"])


@pytest.mark.parametrize(("layout", "concept", "aside"), [("flat", "all/bag", 1), ("folders", "bag/a", 1)])
def test_a_named_layout_sets_aside_what_lies_elsewhere(tmp_path: Path, layout, concept: str, aside: int) -> None:
    write(tmp_path / "root", "train/bag/1.jpg", "train/bag/a/2.jpg")
    summary, catalog, output = build(tmp_path / "root", CatalogConfig(layout=layout, max_quarantine_frac=0.5))
    assert [c.id for c in catalog.concepts] == [concept]
    assert summary["quarantined"] == aside
    reason = {"flat": "a folder in a concept folder", "folders": "an image where a concept folder is expected"}[layout]
    assert load_jsonl(output / "quarantine.jsonl", SetAside)[0].reason.startswith(reason)


def test_two_names_that_others_use_too_are_no_sign(tmp_path: Path) -> None:
    write(tmp_path / "root", "train/dog/1.jpg", "test/dog/2.jpg", "train/cat/3.jpg", "test/cat/4.jpg")
    assert build(tmp_path / "root")[0]["layout"] == "flat"


def test_the_vocabulary_has_every_published_concept() -> None:
    assert [len(words) for words in (YOLLAVA_WORDS, MYVLM_WORDS, DREAMBOOTH_WORDS, PERVA_CATEGORIES)] == [
        40,
        29,
        30,
        21,
    ]
