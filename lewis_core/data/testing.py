"""The data stages from photos to training rows, with made-up embeddings: for tests of what lies between."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lewis_core.artifacts import ArtifactRef, ArtifactStore
from lewis_core.config.base import Runtime
from lewis_core.config.data import CatalogConfig, DatasetConfig, GamesConfig, MiningConfig, SplitConfig
from lewis_core.data.tree import scan_tree
from lewis_core.pipeline import BUILD_CATALOG, BUILD_DATASET, BUILD_GAMES, MINE_DISTRACTORS, SPLIT_CONCEPTS
from lewis_core.records import Catalog, load_record
from lewis_core.seeding import stable_rng
from lewis_core.stages import run_stage

CATALOG, SPLIT, MINING, GAMES = (
    CatalogConfig(),
    SplitConfig(),
    MiningConfig(),
    GamesConfig(num_candidates=3, games_per_concept=5),
)


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


def embed_by_name(store: ArtifactStore, catalog: ArtifactRef) -> ArtifactRef:
    """Publish embeddings, of negatives as well, that depend on the pictures' digests only."""
    import numpy as np

    from lewis_core.retrieval.embedding import distinct_images
    from lewis_core.retrieval.vectors import save_vectors

    images = distinct_images(load_record(catalog.file("catalog.json"), Catalog), with_negatives=True)
    matrix = np.stack([stable_rng(0, image.sha256).normal(size=8) for image in images]).astype(np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    with store.building("embed-images", "fake") as folder:
        names = [image.sha256 for image in images]
        save_vectors(folder / "embeddings.safetensors", folder / "images.json", matrix, names)
        return store.publish(folder, "embed-images", "fake", {}, "", {}, {})


def run_chain(
    root: Path,
    store_root: Path,
    num_workers: int = 2,
    catalog_config: CatalogConfig = CATALOG,
    split_config: SplitConfig = SPLIT,
    mining_config: MiningConfig = MINING,
    games_config: GamesConfig = GAMES,
    **dataset: Any,
) -> Chain:
    """Run every data stage but the encoder.

    Args:
        root: Folder of photos.
        store_root: Where artifacts go.
        num_workers: Workers of the stages.
        catalog_config: How photos are read.
        split_config: How concepts are split.
        mining_config: How look-alikes are chosen.
        games_config: Which games are made.
        dataset: Settings of the data set.

    Returns:
        All artifacts.
    """
    store = ArtifactStore(store_root)
    runtime = {"data_root": root, "runtime": Runtime(num_workers=num_workers)}
    catalog = run_stage(BUILD_CATALOG, store, {"fingerprint": scan_tree(root), "config": catalog_config}, runtime)
    splits = run_stage(SPLIT_CONCEPTS, store, {"catalog": catalog, "config": split_config})
    inputs = {"catalog": catalog, "splits": splits, "embeddings": embed_by_name(store, catalog)}
    candidates = tuple(
        run_stage(MINE_DISTRACTORS, store, {**inputs, "category": category, "config": mining_config})
        for category in load_record(catalog.file("catalog.json"), Catalog).categories
    )
    games = run_stage(BUILD_GAMES, store, {"candidates": list(candidates), "config": games_config})
    arguments = {"games": games, "prompts": "concise", "config": DatasetConfig(**dataset)}
    return Chain(catalog, splits, candidates, games, run_stage(BUILD_DATASET, store, arguments, runtime))
