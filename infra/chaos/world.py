"""A training run on the pocket models that is small enough to be run several times: rows, photos, settings."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lewis_core.artifacts import ArtifactRef, ArtifactStore
from lewis_core.config.base import ModelRef, Runtime
from lewis_core.config.training import LoraSettings, TrainSpeakerConfig
from lewis_core.pocket.config import PocketWorldConfig
from lewis_core.prompts import prompt_set

if TYPE_CHECKING:
    from datasets import Dataset

RUNTIME = Runtime(device="cpu", torch_threads=1, num_workers=1)
POCKET = ModelRef(path="pocket:base", prompts="concise", dtype="float32", max_pixels=12_544, min_pixels=12_544)


def write_photos(folder: Path, concepts: int = 2) -> Path:
    """Render a few look-alike mugs and bags; returns the folder."""
    from lewis_core.pocket.photos import render_photos

    world = PocketWorldConfig(
        seed=5, categories=("mug", "bag"), concepts_per_category=concepts, train_photos=2, test_photos=1
    )
    folder.mkdir(parents=True, exist_ok=True)
    render_photos(folder, world, RUNTIME)
    return folder


def build_rows(photos: Path) -> "Dataset":
    """One game for every training photo: find its concept's test photo among those of the category."""
    from datasets import Dataset

    rows = []
    for query in sorted((photos / "train").glob("*/*/*.jpg")):
        category, concept = query.parent.parent.name, query.parent.name
        candidates = sorted((photos / "test" / category).glob("*/*.jpg"))
        rows.append(
            {
                "prompt": [{"role": "user", "content": prompt_set("concise").speaker(category)}],
                "query": query.relative_to(photos).as_posix(),
                "candidates": [path.relative_to(photos).as_posix() for path in candidates],
                "target_index": [path.parent.name for path in candidates].index(concept),
                "category_word": category,
                "concept": f"{category}/{concept}",
                "game_id": f"{category}/{concept}:{query.stem}",
            }
        )
    return Dataset.from_list(rows)


def publish_rows(photos: Path, store: Path) -> ArtifactRef:
    """The rows as the artifact that training reads."""
    artifacts = ArtifactStore(store)
    with artifacts.building("build-dataset", "chaos") as folder:
        build_rows(photos).save_to_disk(folder / "dataset")
        return artifacts.publish(folder, "build-dataset", "chaos", {}, "chaos", {}, {})


def settings(**changes: Any) -> TrainSpeakerConfig:
    """Settings under which the pocket speaker learns something in each of a few quick steps."""
    wanted: dict[str, Any] = {
        "model": POCKET,
        "listener": POCKET,
        "lora": LoraSettings(r=4, alpha=8, dropout=0.05),
        "max_steps": 10,
        "prompts_per_step": 2,
        "num_generations": 2,
        "max_new_tokens": 40,
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "lr_scheduler": "cosine",
        "save_steps": 3,
        "sample_steps": 5,
        "gradient_checkpointing": False,
        "rewards": {"listener": {"requests": 0}},
    }
    return TrainSpeakerConfig.model_validate(wanted | changes)
