"""Photos to training rows through :func:`run_stage`, with made-up embeddings; then again, and after damage."""

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from lewis_core.artifacts import ArtifactRef, ArtifactStore
from lewis_core.config.base import Runtime
from lewis_core.config.data import CatalogConfig, DatasetConfig, GamesConfig, MiningConfig, SplitConfig
from lewis_core.data.images import load_rgb
from lewis_core.data.layout import scan_tree
from lewis_core.errors import ConfigError, DataError, ImageError
from lewis_core.pipeline import BUILD_CATALOG, BUILD_DATASET, BUILD_GAMES, MINE_DISTRACTORS, SPLIT_CONCEPTS
from lewis_core.records import Catalog, Game, Splits, load_jsonl, load_record
from lewis_core.retrieval.embedding import distinct_images
from lewis_core.retrieval.vectors import save_vectors
from lewis_core.seeding import stable_rng
from lewis_core.stages import run_stage
from lewis_core.testing import write_photo_tree


def embed_by_name(store: ArtifactStore, catalog: ArtifactRef) -> ArtifactRef:
    """Publish embeddings that depend on the pictures' digests only."""
    import numpy as np

    images = distinct_images(load_record(catalog.file("catalog.json"), Catalog))
    matrix = np.stack([stable_rng(0, image.sha256).normal(size=8) for image in images])
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    with store.building("embed-images", "fake") as folder:
        names = [image.sha256 for image in images]
        save_vectors(folder / "embeddings.safetensors", folder / "images.json", matrix, names)
        return store.publish(folder, "embed-images", "fake", {}, "", {}, {})


@dataclass(frozen=True)
class Chain:
    """Every artifact of one pass."""

    catalog: ArtifactRef
    splits: ArtifactRef
    candidates: tuple[ArtifactRef, ...]
    games: ArtifactRef
    dataset: ArtifactRef

    @property
    def all(self) -> list[ArtifactRef]:
        """In the order of the stages."""
        return [self.catalog, self.splits, *self.candidates, self.games, self.dataset]


def run_chain(root: Path, store_root: Path, num_workers: int = 2, **dataset: bool) -> Chain:
    store = ArtifactStore(store_root)
    runtime = {"data_root": root, "runtime": Runtime(num_workers=num_workers)}
    catalog = run_stage(BUILD_CATALOG, store, {"fingerprint": scan_tree(root), "config": CatalogConfig()}, runtime)
    splits = run_stage(SPLIT_CONCEPTS, store, {"catalog": catalog, "config": SplitConfig()})
    inputs = {"catalog": catalog, "splits": splits, "embeddings": embed_by_name(store, catalog)}
    candidates = tuple(
        run_stage(MINE_DISTRACTORS, store, {**inputs, "category": category, "config": MiningConfig()})
        for category in load_record(catalog.file("catalog.json"), Catalog).categories
    )
    config = GamesConfig(num_candidates=3, games_per_concept=5)
    games = run_stage(BUILD_GAMES, store, {"candidates": list(candidates), "config": config})
    arguments = {"games": games, "prompts": "concise", "config": DatasetConfig(**dataset)}
    return Chain(catalog, splits, candidates, games, run_stage(BUILD_DATASET, store, arguments, runtime))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three categories of six concepts (three trained on), and a small one that is held out entirely."""
    write_photo_tree(tmp_path / "root", categories=("bag", "mug", "tro_bag"), concepts=6, photos=2)
    write_photo_tree(tmp_path / "root", categories=("hat",), concepts=2, photos=1)
    return tmp_path / "root"


def times(refs: list[ArtifactRef]) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for ref in refs for path in ref.path.rglob("*") if path.is_file()}


def test_games_are_about_training_concepts_only(root: Path, tmp_path: Path) -> None:
    chain = run_chain(root, tmp_path / "store")
    splits = load_record(chain.splits.file("splits.json"), Splits)
    games = load_jsonl(chain.games.file("games.jsonl"), Game)
    assert len(splits.training) == 9
    assert {game.concept for game in games} == set(splits.training)
    assert {concept for game in games for concept in game.candidate_concepts} <= set(splits.training)
    assert len(games) == 45
    assert all(len({concept.split("/")[0] for concept in game.candidate_concepts}) == 1 for game in games)


def test_a_category_without_training_concepts_is_empty_not_an_error(root: Path, tmp_path: Path) -> None:
    chain = run_chain(root, tmp_path / "store")
    [hats] = [ref for ref in chain.candidates if ref.summary["concepts"] == 0]
    assert hats.summary == {"concepts": 0, "queries": 0, "degenerate": 0}
    assert hats.file("candidates.jsonl").read_bytes() == b""


def test_an_unknown_category_is_an_error(root: Path, tmp_path: Path) -> None:
    chain, store = run_chain(root, tmp_path / "store"), ArtifactStore(tmp_path / "store")
    inputs = {"catalog": chain.catalog, "splits": chain.splits, "embeddings": embed_by_name(store, chain.catalog)}
    with pytest.raises(DataError, match="no category 'shoe'; it has bag, hat, mug, tro_bag"):
        run_stage(MINE_DISTRACTORS, store, {**inputs, "category": "shoe", "config": MiningConfig()})


def test_a_second_pass_computes_nothing(root: Path, tmp_path: Path) -> None:
    first = run_chain(root, tmp_path / "store")
    before = times(first.all)
    second = run_chain(root, tmp_path / "store")
    assert second == first
    assert times(second.all) == before


def test_a_truncated_output_is_made_again_and_what_depends_on_it_is_kept(root: Path, tmp_path: Path) -> None:
    first = run_chain(root, tmp_path / "store")
    before = times(first.all)
    file = first.candidates[0].file("candidates.jsonl")
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    second = run_chain(root, tmp_path / "store")
    assert file.read_bytes() == whole
    assert second == first
    changed = {path for path, time in times(second.all).items() if before[path] != time}
    assert {path.parent for path in changed} == {file.parent}


def test_touching_a_photo_reads_it_again_but_changes_nothing_behind(root: Path, tmp_path: Path) -> None:
    first = run_chain(root, tmp_path / "store")
    os.utime(root / "train/bag/b00/0.jpg", ns=(5, 5))
    second = run_chain(root, tmp_path / "store")
    assert second.catalog.key != first.catalog.key
    assert second.catalog.digest == first.catalog.digest
    assert second.all[1:] == first.all[1:]


def test_the_data_set_says_what_the_games_say(root: Path, tmp_path: Path) -> None:
    import datasets

    chain = run_chain(root, tmp_path / "store")
    rows = datasets.load_from_disk(chain.dataset.path / "dataset")
    games = load_jsonl(chain.games.file("games.jsonl"), Game)
    assert len(rows) == len(games) == chain.dataset.summary["rows"] == 45
    for row, game in zip(rows, games, strict=True):
        assert row["query"] == game.query.path
        assert row["candidates"] == [image.path for image in game.candidates]
        assert (row["target_index"], row["game_id"], row["concept"]) == (game.target_index, game.id, game.concept)
        [message] = row["prompt"]
        assert message["role"] == "user"
        assert game.category_word in message["content"]
        assert game.concept.split("/")[1] not in message["content"]
    trolley = next(row for row in rows if row["concept"].startswith("tro_bag/"))
    assert trolley["category_word"] == "trolley bag"
    card = chain.dataset.file("README.md").read_text()
    assert "- 45 games of 9 concepts, 3 candidates each" in card
    assert "| `candidates` | list of string |" in card


def test_photos_can_be_stored_in_the_rows(root: Path, tmp_path: Path) -> None:
    import datasets

    chain = run_chain(root, tmp_path / "store", embed_images=True)
    rows = datasets.load_from_disk(chain.dataset.path / "dataset")
    game = load_jsonl(chain.games.file("games.jsonl"), Game)[0]
    expected = load_rgb(root, game.query)
    with rows[0]["query"] as stored:
        assert stored.convert("RGB").tobytes() == expected.tobytes()


def test_storing_photos_needs_the_photos_unchanged(root: Path, tmp_path: Path) -> None:
    chain, store = run_chain(root, tmp_path / "store"), ArtifactStore(tmp_path / "store")
    arguments = {"games": chain.games, "prompts": "concise", "config": DatasetConfig(embed_images=True)}
    with pytest.raises(ConfigError, match="data_root has to be given"):
        run_stage(BUILD_DATASET, store, arguments)
    for path in root.rglob("*.jpg"):
        path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ImageError, match="changed since the catalog was built"):
        run_stage(BUILD_DATASET, store, arguments, {"data_root": root})


def test_a_change_of_one_photo_goes_through(root: Path, tmp_path: Path) -> None:
    first = run_chain(root, tmp_path / "store")
    trained = load_record(first.splits.file("splits.json"), Splits).training[0]
    photo = root / "train" / trained / "0.jpg"
    photo.write_bytes((root / "train/hat/h00/0.jpg").read_bytes() + b"x")
    second = run_chain(root, tmp_path / "store")
    assert second.splits.digest == first.splits.digest
    assert second.games.digest != first.games.digest
    digest = hashlib.sha256(photo.read_bytes()).hexdigest()
    assert digest in second.games.file("games.jsonl").read_text()


CHAIN = """
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("chain", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules["chain"] = module
spec.loader.exec_module(module)
chain = module.run_chain(Path(sys.argv[2]), Path(sys.argv[3]), num_workers=int(sys.argv[4]))
print([(ref.kind, ref.key, ref.digest) for ref in chain.all])
"""


def test_another_process_makes_the_same_bytes(root: Path, tmp_path: Path) -> None:
    here = [(ref.kind, ref.key, ref.digest) for ref in run_chain(root, tmp_path / "here").all]
    other_salt = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    command = [sys.executable, "-c", CHAIN, __file__, str(root), str(tmp_path / "there"), "5"]
    environment = {**os.environ, "PYTHONHASHSEED": other_salt}
    there = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    assert there == f"{here}\n"
