"""The reference's JSON files are read and written: round trips, hand-made files, and named mistakes."""

import json
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows import steps
from lewis_core.artifacts import ArtifactStore
from lewis_core.config.base import Runtime
from lewis_core.config.data import CatalogConfig, GamesConfig, SplitConfig
from lewis_core.data.catalog import build_catalog
from lewis_core.data.exchange.__main__ import main
from lewis_core.data.exchange.catalogs import export_catalog, iter_entries
from lewis_core.data.exchange.games import export_retrieval, import_games, import_retrieval
from lewis_core.data.exchange.paths import PathFinder
from lewis_core.data.exchange.splits import export_splits, import_splits, merge_splits, parse_concept_list
from lewis_core.data.layout import SetAside
from lewis_core.data.splits import choose_splits
from lewis_core.errors import CatalogError, DataError
from lewis_core.pipeline import BUILD_CATALOG, SPLIT_CONCEPTS
from lewis_core.records import Catalog, Concept, Game, ImageRecord, JsonObject, Splits, load_jsonl, load_record
from lewis_core.reporting import NullReporter
from lewis_core.stages import run_stage
from lewis_core.testing import publish_files, write_image, write_photo_tree


def build(root: Path, config: CatalogConfig = CatalogConfig()) -> tuple[JsonObject, Catalog, Path]:
    output = root.with_name(f"out{len(list(root.parent.iterdir()))}")
    output.mkdir()
    summary = build_catalog("f", output, config, root, Runtime(num_workers=1), NullReporter())
    return summary, load_record(output / "catalog.json", Catalog), output


def image(path: str) -> ImageRecord:
    return ImageRecord(path=path, sha256=f"sha-{path}", width=8, height=8)


@pytest.fixture
def catalog() -> Catalog:
    """Three bags and a mug, with two training photos and one test photo each; one has a negative."""
    concepts = []
    for concept_id in ("bag/alx", "bag/ash", "bag/bkq", "mug/fse"):
        category, _, name = concept_id.partition("/")
        photos = [image(f"train_/{concept_id}/{number}.jpg") for number in (1, 2)]
        negative = (image("train_/bag/alx/laion/9.jpg"),) if name == "alx" else ()
        test = (image(f"test_/{concept_id}/1.jpg"),)
        concepts.append(
            Concept(
                category=category, category_word=category, name=name, train=tuple(photos), test=test, negative=negative
            )
        )
    return Catalog(concepts=tuple(concepts))


def test_a_catalog_as_the_reference_writes_it(catalog: Catalog) -> None:
    found = export_catalog(catalog, "data/PerVA/")
    assert found["mug"] == {
        "fse": {
            "train": ["data/PerVA/train_/mug/fse/1.jpg", "data/PerVA/train_/mug/fse/2.jpg"],
            "test": ["data/PerVA/test_/mug/fse/1.jpg"],
            "negative": [],
        }
    }
    assert found["bag"]["alx"]["negative"] == ["data/PerVA/train_/bag/alx/laion/9.jpg"]
    assert [(category, list(concepts)) for category, concepts in found.items()] == [
        ("bag", ["alx", "ash", "bkq"]),
        ("mug", ["fse"]),
    ]


def test_a_catalog_goes_there_and_comes_back(tmp_path: Path) -> None:
    """Catalog → the reference's file → catalog, through the stage, with paths of another machine."""
    root = tmp_path / "root"
    write_photo_tree(root, concepts=2, photos=2)
    write_image(root / "train/bag/b00/laion/7.jpg", 77)
    _, first, _ = build(root)
    (root / "main_catalog_seed_23.json").write_text(json.dumps(export_catalog(first, "/somewhere/else/PerVA/")))
    summary, second, _ = build(root, CatalogConfig(listing="main_catalog_seed_23.json"))
    assert second == first
    assert summary["layout_evidence"] == ["catalog.listing = main_catalog_seed_23.json"]


def test_a_listing_decides_over_the_folders(tmp_path: Path) -> None:
    """Files nobody lists are not used; listed files that are missing are named; test photos may be for training."""
    root = tmp_path / "root"
    write_photo_tree(root, categories=("bag",), concepts=3, photos=1)
    listing = {
        "sack": {
            "one": {"train": ["x/test/bag/b00/0.jpg"]},
            "two": {"train": ["train/bag/b01/0.jpg", "train/bag/b01/0.jpg"], "test": ["x/gone.jpg"], "negative": []},
        }
    }
    (root / "list.json").write_text(json.dumps(listing))
    summary, catalog, output = build(root, CatalogConfig(listing="list.json", max_quarantine_frac=0.5))
    assert [(c.id, [i.path for i in c.train]) for c in catalog.concepts] == [
        ("sack/one", ["test/bag/b00/0.jpg"]),
        ("sack/two", ["train/bag/b01/0.jpg"]),
    ]
    [aside] = load_jsonl(output / "quarantine.jsonl", SetAside)
    assert (aside.path, aside.reason) == ("x/gone.jpg", "listed in list.json, but x/gone.jpg is not in the data root")
    assert summary["quarantined"] == 1


def test_a_listing_of_yollava_has_its_words(tmp_path: Path) -> None:
    for concept in ("bo", "thao", "fire"):
        write_image(tmp_path / f"root/train/{concept}/0.png", len(concept))
    listing = {"all": {name: {"train": [f"data/YoLLaVA/train/all/{name}/0.png"]} for name in ("bo", "thao", "fire")}}
    (tmp_path / "root/c.json").write_text(json.dumps(listing))
    _, catalog, _ = build(tmp_path / "root", CatalogConfig(listing="c.json"))
    assert {c.name: c.category_word for c in catalog.concepts} == {
        "bo": "pet animal",
        "thao": "person",
        "fire": "cartoon character",
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param({"bag": []}, r"c\.json: key 'bag': expected an object of concepts, found \[\]", id="category"),
        pytest.param(
            {"bag": {"a": {"val": []}}}, r"key 'bag' → 'a': expected an object of train, test, neg", id="list"
        ),
        pytest.param({"bag": {"a": {"train": [1]}}}, r"key 'bag' → 'a' → 'train': expected a list of paths", id="path"),
    ],
)
def test_a_malformed_catalog_names_the_key(content: JsonObject, message: str) -> None:
    with pytest.raises(CatalogError, match=message):
        list(iter_entries(content, "c.json"))


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        pytest.param(
            {"bag": {"b00": {"train": ["train/bag/b00/0.jpg"]}, "b01": {"test": ["train/bag/b00/0.jpg"]}}},
            r"train/bag/b00/0\.jpg is listed for bag/b00 \(train\) and for bag/b01 \(test\)",
            id="two-owners",
        ),
        pytest.param(None, r"holds no file 'c\.json'", id="missing"),
    ],
)
def test_a_listing_that_cannot_be_used_is_an_error(tmp_path: Path, listing: JsonObject | None, message: str) -> None:
    write_photo_tree(tmp_path / "root", categories=("bag",), concepts=2, photos=1)
    if listing is not None:
        (tmp_path / "root/c.json").write_text(json.dumps(listing))
    with pytest.raises(CatalogError, match=message):
        build(tmp_path / "root", CatalogConfig(listing="c.json"))


def test_paths_of_another_machine() -> None:
    finder = PathFinder(["train_/bag/a/1.jpg", "test_/bag/a/1.jpg", "train/bo/0.png", "test/bo/0.png", "x/9.jpg"])
    assert finder.find("train_/bag/a/1.jpg") == "train_/bag/a/1.jpg"
    assert finder.find("/gpfs/data/PerVA/test_/bag/a/1.jpg") == "test_/bag/a/1.jpg"
    assert finder.find("data/YoLLaVA/test/all/bo/0.png") == "test/bo/0.png"
    with pytest.raises(DataError, match=r"bo/0\.png could be any of test/bo/0\.png, train/bo/0\.png"):
        finder.find("elsewhere/bo/0.png")
    with pytest.raises(DataError, match=r"y/9\.jpg is not in the data root"):
        finder.find("y/9.jpg")  # the name alone is no evidence


def test_a_split_as_the_reference_writes_it(catalog: Catalog) -> None:
    splits = Splits(training=("bag/alx", "bag/ash"), held_out=("bag/bkq", "mug/fse"))
    files = export_splits(catalog, splits, SplitConfig(seed=42, concept_frac=0.5, min_concepts=3))
    train, test, metadata = files.values()
    assert list(files) == [
        "train_combined_concepts_seed_42.json",
        "test_combined_concepts_seed_42.json",
        "train_test_combined_metadata_seed_42.json",
    ]
    assert train == {
        "bag": {
            "alx": {"train": ["train_/bag/alx/1.jpg", "train_/bag/alx/2.jpg"], "test": []},
            "ash": {"train": ["train_/bag/ash/1.jpg", "train_/bag/ash/2.jpg"], "test": []},
        }
    }
    assert test["mug"]["fse"]["test"] == ["test_/mug/fse/1.jpg"]
    assert (metadata["seed"], metadata["concept_frac"], metadata["min_concepts_threshold"]) == (42, 0.5, 3)
    assert metadata["categories"]["bag"]["selected_concepts"] == ["alx", "ash"]
    assert metadata["categories"]["mug"]["n_concepts"] == 1
    assert import_splits(train, test) == {"training": ["bag/alx", "bag/ash"], "held_out": ["bag/bkq", "mug/fse"]}
    lists = SplitConfig.model_validate(import_splits(train, test))
    assert choose_splits(catalog, lists) == splits


def test_test_images_that_the_reference_moved_to_training_stay_there() -> None:
    train = {"bag": {"a": {"train": ["train/bag/a/1.jpg", "test/bag/a/2.jpg"], "test": []}}}
    test = {"bag": {"b": {"train": ["train/bag/b/1.jpg"], "test": ["test/bag/b/2.jpg"]}}, "mug": {"c": {"train": []}}}
    merged = merge_splits(train, test)
    assert merged["bag"]["a"]["train"] == ["train/bag/a/1.jpg", "test/bag/a/2.jpg"]
    assert list(merged["bag"]) == ["a", "b"] and list(merged["mug"]) == ["c"]
    with pytest.raises(DataError, match="1 concepts are in both files: bag/a"):
        merge_splits(train, train)


def test_concept_lists() -> None:
    """The reference appends to its lists, so lines repeat."""
    assert parse_concept_list("bag,alx\nmug, fse\n\nbag,alx\n", "l.txt") == ["bag/alx", "mug/fse"]
    with pytest.raises(CatalogError, match=r"l\.txt, line 2: expected category,concept, found 'mug'"):
        parse_concept_list("bag,alx\nmug\n", "l.txt")


def row(**changes: object) -> JsonObject:
    """A row as the reference writes it, with the paths of its machine."""
    paths = [f"/data/PerVA/train_/bag/{name}.jpg" for name in ("ash/1", "alx/2", "bkq/1")]
    return {
        "query_path": "/data/PerVA/train_/bag/alx/1.jpg",
        "ret_paths": paths,
        "label": 1,
        "category": "bag",
    } | changes


def test_games_go_there_and_come_back(catalog: Catalog) -> None:
    games, refused = import_retrieval([row(), row(ret_descs=["Name: ash …"] * 3)], catalog)
    assert refused == []
    assert [game.id for game in games] == ["bag/alx:0", "bag/alx:1"]
    assert games[0].candidate_concepts == ("bag/ash", "bag/alx", "bag/bkq")
    assert games[0].query.path == "train_/bag/alx/1.jpg"
    assert export_retrieval(games[:1], "/data/PerVA/") == [row()]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        pytest.param("x", "expected an object, found 'x'", id="no-object"),
        pytest.param(row(query_path=None), "key 'query_path': expected a path, found None", id="no-query"),
        pytest.param(row(ret_paths="x"), "key 'ret_paths': expected a list of paths, found 'x'", id="no-list"),
        pytest.param(
            row(ret_paths=["a", None]), "'ret_paths': null at position 1: the concept has no second view", id="null"
        ),
        pytest.param(row(label=3), "key 'label': expected a position from 0 to 2, found 3", id="label"),
        pytest.param(row(label=True), "key 'label': expected a position from 0 to 2, found True", id="bool"),
        pytest.param(row(query_path="q.jpg"), "q.jpg is not in the data root", id="unknown-image"),
        pytest.param(row(label=0), "game bag/alx:0: the target shows bag/ash, not bag/alx", id="wrong-target"),
        pytest.param(
            row(ret_paths=["train_/bag/ash/1.jpg", "train_/bag/alx/1.jpg", "train_/bag/bkq/1.jpg"]),
            "game bag/alx:0: the target is the query photo itself",
            id="query-as-target",
        ),
        pytest.param(
            row(ret_paths=["train_/bag/alx/2.jpg"], label=0),
            "Tuple should have at least 2 items",
            id="single-candidate",
        ),
    ],
)
def test_rows_that_cannot_be_played_are_named(catalog: Catalog, wrong: Any, reason: str) -> None:
    games, [refused] = import_retrieval([row(), wrong], catalog)
    assert len(games) == 1
    assert refused.path == "row 1"
    assert reason.replace("alx:0", "alx:1") in refused.reason


def import_from(tmp_path: Path, catalog: Catalog, rows: object, **settings: Any) -> tuple[JsonObject, Path]:
    files = {"catalog.json": catalog.model_dump_json()}
    splits = Splits(training=("bag/alx", "bag/ash", "bag/bkq"), held_out=("mug/fse",))
    (tmp_path / "list.json").write_text(json.dumps(rows))
    summary = import_games(
        publish_files(tmp_path / "store", "build-catalog", files),
        publish_files(tmp_path / "store", "split-concepts", {"splits.json": splits.model_dump_json()}),
        "f",
        tmp_path,
        GamesConfig(retrieval_list="list.json", **settings),
        tmp_path,
    )
    return summary, tmp_path


def test_an_experiment_s_games_are_played_in_place_of_our_own(catalog: Catalog, tmp_path: Path) -> None:
    held_out = row(ret_paths=["train_/mug/fse/1.jpg", "train_/bag/alx/2.jpg"])
    rows = [row(), row(label=0), row(query_path="train_/bag/ash/2.jpg", label=0), held_out]
    summary, folder = import_from(tmp_path, catalog, rows, max_degenerate_frac=0.5)
    games = load_jsonl(folder / "games.jsonl", Game)
    assert [(game.concept, game.target_index) for game in games] == [("bag/alx", 1), ("bag/ash", 0)]
    assert [(entry.path, entry.reason) for entry in load_jsonl(folder / "refused.jsonl", SetAside)] == [
        ("row 1", "game bag/alx:1: the target shows bag/ash, not bag/alx"),
        ("bag/alx:1", "shows concepts that are not trained on"),
    ]
    assert (summary["games"], summary["queries"], summary["degenerate_queries"]) == (2, 4, 2)
    assert summary["target_positions"] == [1, 1]


def test_too_many_games_that_cannot_be_played_stop_the_run(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2 of 3 games in .*list\.json cannot be played \(the target shows .*: 2\)"):
        import_from(tmp_path, catalog, [row(), row(label=0), row(label=2)])
    with pytest.raises(CatalogError, match="expected a list of games, found a dict"):
        import_from(tmp_path, catalog, {})
    assert not (tmp_path / "games.jsonl").exists()


def test_the_flow_s_step_names_a_missing_list(tmp_path: Path) -> None:
    games = GamesConfig(retrieval_list="none.json")
    run = SimpleNamespace(config=SimpleNamespace(games=games), data_root=tmp_path)
    with pytest.raises(CatalogError, match=r"games\.retrieval_list: .* holds no file 'none\.json'"):
        steps.import_games(run, None)  # type: ignore[arg-type]


def test_the_command_line_takes_over_an_experiment(
    catalog: Catalog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = export_splits(catalog, Splits(training=("bag/alx",), held_out=("bag/ash",)), SplitConfig())
    train, test, *_ = (tmp_path / name for name in sides)
    for path, content in zip((train, test), sides.values(), strict=False):
        path.write_text(json.dumps(content))
    assert main(["splits-from", str(train), "--test", str(test), "--merged", str(tmp_path / "merged.json")]) == 0
    printed = tomllib.loads(capsys.readouterr().out)
    assert printed == {"splits": {"training": ["bag/alx"], "held_out": ["bag/ash"]}}
    assert list(json.loads((tmp_path / "merged.json").read_text())["bag"]) == ["alx", "ash"]
    (tmp_path / "catalog.json").write_text(catalog.model_dump_json())
    (tmp_path / "rows.json").write_text(json.dumps([row(), row(label=0)]))
    command = ["games-from", str(tmp_path / "rows.json"), str(tmp_path), str(tmp_path / "games.jsonl")]
    assert main(command) == 0
    assert "1 games, 1 rows refused\n  row 1: game bag/alx:1: the target shows bag/ash" in capsys.readouterr().out
    assert len(load_jsonl(tmp_path / "games.jsonl", Game)) == 1
    assert main(["games-to", str(tmp_path), str(tmp_path / "again.json"), "--prefix", "/data/PerVA/"]) == 0
    assert json.loads((tmp_path / "again.json").read_text()) == [row()]


def test_the_command_line_hands_artifacts_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photo_tree(tmp_path / "root", concepts=4, photos=1)
    store, runtime = ArtifactStore(tmp_path / "store"), {"data_root": tmp_path / "root", "runtime": Runtime()}
    catalog = run_stage(BUILD_CATALOG, store, {"fingerprint": "f", "config": CatalogConfig()}, runtime)
    splits = run_stage(SPLIT_CONCEPTS, store, {"catalog": catalog, "config": SplitConfig(seed=7, concept_frac=0.25)})
    assert main(["splits-to", str(catalog.path), str(splits.path), str(tmp_path / "handed")]) == 0
    assert main(["catalog-to", str(catalog.path), str(tmp_path / "handed/catalog.json")]) == 0
    metadata = json.loads((tmp_path / "handed/train_test_combined_metadata_seed_7.json").read_text())
    assert (metadata["seed"], metadata["concept_frac"], metadata["min_concepts_threshold"]) == (7, 0.25, 4)
    train = json.loads((tmp_path / "handed/train_combined_concepts_seed_7.json").read_text())
    assert [len(concepts) for concepts in train.values()] == [1, 1]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.json", "[1", "rows.json is not a JSON file: line 1, column 3"),
        ("rows.json", "{}", "expected a list of games, found a dict"),
        ("rows.json", "[3]", "none of 1 rows can be played\n  row 0: expected an object, found 3"),
    ],
)
def test_the_command_line_says_what_is_wrong(
    catalog: Catalog, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    (tmp_path / "catalog.json").write_text(catalog.model_dump_json())
    assert main(["games-from", str(tmp_path / name), str(tmp_path), str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
