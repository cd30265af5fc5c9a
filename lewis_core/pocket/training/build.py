"""Building of the three pocket checkpoints: train, then package.

python -m lewis_core.pocket.training.build <settings.json> <output folder>
"""

import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from lewis_core.pocket import MODELS_DIR
from lewis_core.pocket.training.clip import caption_maker, train_clip
from lewis_core.pocket.training.config import (
    ClipTrainingConfig,
    PocketBuildConfig,
    StreamConfig,
    VlmTrainingConfig,
)
from lewis_core.pocket.training.encoding import ExerciseEncoder, StepBatch, build_step
from lewis_core.pocket.training.stream import DevicePool, Feeder, MakeBatch, PixelPool
from lewis_core.pocket.training.vlm import VlmTrainer
from lewis_core.pocket.world import Facts

logger = logging.getLogger(__name__)
FROZEN_TOKENIZER = MODELS_DIR / "base" / "tokenizer.json"


def exercise_maker(encoder: ExerciseEncoder, config: VlmTrainingConfig) -> MakeBatch:
    """Return the function that writers call for a step's exercises."""

    def make(
        rng: np.random.Generator,
        facts_of: Callable[[int], Facts],
        image_range: tuple[int, int],
    ) -> StepBatch:
        count, scale = config.images_per_learn_step, config.exercise_scale
        return build_step(encoder, rng, facts_of, image_range, count, scale)

    return make


def train_on_stream(
    stream: StreamConfig,
    vlm: VlmTrainingConfig,
    output_dir: Path,
    device: str,
    clip: tuple[ClipTrainingConfig, Path] | None = None,
    tokenizer_file: Path = FROZEN_TOKENIZER,
) -> None:
    """Train a vision-language model, and a CLIP model after it, on one stream of photos.

    Needs torch, tokenizers and safetensors only (open_clip for CLIP), no transformers.
    """
    encoder = ExerciseEncoder(tokenizer_file)
    captions = caption_maker(encoder, clip[0].batch if clip else 1)
    with (
        PixelPool(stream) as pool,
        Feeder(stream, "exercises", exercise_maker(encoder, vlm)) as exercises,
        Feeder(stream, "captions", captions) as pairs,
    ):
        photos = DevicePool(pool, device)
        photos.wait_for(2)
        trainer = VlmTrainer(vlm, encoder, photos, exercises)
        trainer.see()
        trainer.learn(partial(trainer.save, output_dir))
        exercises.close()
        if clip:
            train_clip(clip[0], encoder, photos, pairs, clip[1])


def train_pocket_weights(output_dir: Path, config: PocketBuildConfig) -> None:
    """Train all three models; writes ``<output_dir>/{base,listener,clip}`` with bare weights."""
    clip = config.clip, output_dir / "clip"
    train_on_stream(config.base_stream, config.base, output_dir / "base", config.device, clip)
    train_on_stream(config.listener_stream, config.listener, output_dir / "listener", config.device)


def build_pocket_models(output_dir: Path, config: PocketBuildConfig) -> None:
    """Train all three models and write folders that transformers and open_clip load.

    Args:
        output_dir: Gets ``base``, ``listener`` and ``clip``, and ``weights`` with the logs.
        config: Seeds, sizes and budgets.
    """
    from lewis_core.pocket.training.pack import pack_pocket_models

    weights_dir = output_dir / "weights"
    train_pocket_weights(weights_dir, config)
    pack_pocket_models(weights_dir, output_dir)


def main(settings: Path, output_dir: Path) -> None:
    """Build from a JSON file of :class:`PocketBuildConfig`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    build_pocket_models(output_dir, PocketBuildConfig.model_validate_json(settings.read_text()))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
