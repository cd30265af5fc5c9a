"""Photos to training rows through :func:`run_stage`, with made-up embeddings; then again, and after damage."""

import hashlib
import io
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lewis_core.artifacts import ArtifactRef, ArtifactStore
from lewis_core.config.data import DatasetConfig, MiningConfig
from lewis_core.data.images import load_rgb
from lewis_core.data.testing import embed_by_name, run_chain
from lewis_core.errors import ConfigError, DataError, ImageError
from lewis_core.pipeline import BUILD_DATASET, MINE_DISTRACTORS
from lewis_core.records import Game, Splits, load_jsonl, load_record
from lewis_core.retrieval.mining import CandidateRow
from lewis_core.stages import run_stage
from lewis_core.testing import write_image, write_photo_tree


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


def test_held_out_concepts_are_mined_among_themselves(root: Path, tmp_path: Path) -> None:
    chain, store = run_chain(root, tmp_path / "store"), ArtifactStore(tmp_path / "store")
    splits = load_record(chain.splits.file("splits.json"), Splits)
    counts = Counter(concept.split("/")[0] for concept in splits.held_out)
    category, count = counts.most_common(1)[0]
    assert count > 1
    inputs = {"catalog": chain.catalog, "splits": chain.splits, "embeddings": embed_by_name(store, chain.catalog)}
    arguments = {**inputs, "category": category, "config": MiningConfig(), "concepts": "held-out"}
    mined = load_jsonl(run_stage(MINE_DISTRACTORS, store, arguments).file("candidates.jsonl"), CandidateRow)
    held_out = {concept for concept in splits.held_out if concept.startswith(f"{category}/")}
    assert {row.concept for row in mined} == held_out
    assert {one.concept for row in mined for one in row.distractors} == held_out


def test_a_category_without_training_concepts_is_empty_not_an_error(root: Path, tmp_path: Path) -> None:
    chain = run_chain(root, tmp_path / "store")
    [hats] = [ref for ref in chain.candidates if ref.summary["concepts"] == 0]
    assert hats.summary == {"concepts": 0, "queries": 0, "degenerate": 0, "degenerate_reasons": {}}
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


def test_listener_pairs_are_drawn_from_games(root: Path, tmp_path: Path) -> None:
    import datasets

    chain = run_chain(root, tmp_path / "store", role="listener", cross_category_frac=0.4, seed=1)
    rows = datasets.load_from_disk(chain.dataset.path / "dataset")
    games = {game.id: game for game in load_jsonl(chain.games.file("games.jsonl"), Game)}
    assert [row["game_id"] for row in rows] == list(games)
    for row in rows:
        game = games[row["game_id"]]
        owners = dict(zip((image.path for image in game.candidates), game.candidate_concepts, strict=True))
        first, second = row["photos"]
        assert (first, row["concept"]) == (game.query.path, game.concept)
        assert (row["answer"] == "yes") == (row["kind"] == "same") == (row["other_concept"] == row["concept"])
        assert second.split("/")[2] == row["other_concept"].split("/")[1]
        if row["kind"] == "other category":
            assert row["other_concept"].split("/")[0] != game.category
        else:
            assert owners[second] == row["other_concept"]
        [message] = row["prompt"]
        assert [part["type"] for part in message["content"]] == ["text", "image", "text", "image", "text"]
        assert f"the same {game.category_word}?" in message["content"][-1]["text"]
    kinds = Counter(row["kind"] for row in rows)
    assert dict(sorted(kinds.items())) == chain.dataset.summary["answers"]
    assert kinds == {"same": 22, "other category": 9, "look-alike": 14}  # of 45: half, and 0.4 of the other 23
    card = chain.dataset.file("README.md").read_text()
    assert f"| same | {kinds['same']} | {kinds['same'] / 45:.1%} |" in card
    assert "| `photos` | list of string |" in card


def test_negatives_become_distractors_and_pairs(root: Path, tmp_path: Path) -> None:
    import datasets

    for number, place in enumerate(sorted((root / "train").glob("*/*"))):
        for seed in (1000 + number, 2000 + number):
            write_image(place / "laion" / f"{seed}.jpg", seed)
    mixed = MiningConfig(negatives_frac=0.5, cross_category_frac=0.2, easy_frac=0.2, mix="distractor")
    chain = run_chain(root, tmp_path / "store", mining_config=mixed, role="listener")
    games = load_jsonl(chain.games.file("games.jsonl"), Game)
    kinds = Counter[str]()
    for game in games:
        for place, (image, concept) in enumerate(zip(game.candidates, game.candidate_concepts, strict=True)):
            category = concept.partition("/")[0]
            kind = "none" if not concept else "same" if category == game.category else "other"
            kinds[kind] += place != game.target_index
            assert ("/laion/" in image.path) == (kind == "none")
            assert kind != "none" or image.path.startswith(f"train/{game.concept}/laion/")  # there are two of each
    assert set(kinds) == {"none", "same", "other"}
    assert min(kinds.values()) > 5
    rows = datasets.load_from_disk(chain.dataset.path / "dataset")
    assert {row["kind"] for row in rows} == {"same", "look-alike", "other category", "negative"}
    assert all((row["kind"] == "negative") == ("/laion/" in row["photos"][1]) for row in rows)


def test_pairs_of_categories_need_two_categories(tmp_path: Path) -> None:
    write_photo_tree(tmp_path / "root", categories=("bag",), concepts=6, photos=2)
    with pytest.raises(ConfigError, match="all games are of the category 'bag'; set it to 0"):
        run_chain(tmp_path / "root", tmp_path / "store", role="listener", cross_category_frac=0.4)


def test_rows_can_be_read_one_by_one_from_files_of_a_size(root: Path, tmp_path: Path) -> None:
    import datasets

    chain = run_chain(root, tmp_path / "store")
    rows = datasets.load_from_disk(chain.dataset.path / "dataset")
    streamed = datasets.load_dataset(
        "arrow",
        data_files=f"{chain.dataset.path}/dataset/*.arrow",
        split="train",
        streaming=True,
        cache_dir=str(tmp_path),
    )
    assert list(streamed) == list(rows)
    assert streamed.features == rows.features
    positions = chain.games.summary["target_positions"]
    assert chain.dataset.summary["answers"] == {str(place): count for place, count in enumerate(positions)}
    assert f"| 0 | {positions[0]} | {positions[0] / 45:.1%} |" in chain.dataset.file("README.md").read_text()
    trained = load_record(chain.splits.file("splits.json"), Splits).training[0]
    (root / "train" / trained / "0.jpg").write_bytes(random_jpeg(1200))
    large = run_chain(root, tmp_path / "store", embed_images=True, max_shard_mb=1)
    assert len(list((large.dataset.path / "dataset").glob("*.arrow"))) > 1
    assert len(datasets.load_from_disk(large.dataset.path / "dataset")) == 45


def random_jpeg(size: int) -> bytes:
    """A JPEG that compresses badly."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


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
import sys
from pathlib import Path
from lewis_core.data.testing import run_chain
chain = run_chain(Path(sys.argv[1]), Path(sys.argv[2]), num_workers=int(sys.argv[3]))
print([(ref.kind, ref.key, ref.digest) for ref in chain.all])
"""


def test_another_process_makes_the_same_bytes(root: Path, tmp_path: Path) -> None:
    here = [(ref.kind, ref.key, ref.digest) for ref in run_chain(root, tmp_path / "here").all]
    other_salt = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    command = [sys.executable, "-c", CHAIN, str(root), str(tmp_path / "there"), "5"]
    environment = {**os.environ, "PYTHONHASHSEED": other_salt}
    there = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    assert there == f"{here}\n"
