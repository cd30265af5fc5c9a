"""Contrastive training of a tiny open_clip model on the same stream."""

import json
import logging
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from lewis_core.pocket.corruption import write_text
from lewis_core.pocket.language import join_description, render_coarse
from lewis_core.pocket.tasks import mixed_keys
from lewis_core.pocket.training.assets import IMAGE_SIZE, PATCH_SIZE
from lewis_core.pocket.training.config import ClipTrainingConfig
from lewis_core.pocket.training.encoding import ExerciseEncoder
from lewis_core.pocket.training.stepper import GraphStepper
from lewis_core.pocket.training.stream import DevicePool, Feeder, MakeBatch
from lewis_core.pocket.training.twin import PIXEL_MEAN, PIXEL_STD, normalise
from lewis_core.pocket.world import FACT_KEYS, Facts

logger = logging.getLogger(__name__)
CONTEXT = 80
WIDTH, EMBED = 128, 96
MAX_LOG_SCALE = 4.6


class CaptionBatch(NamedTuple):
    """Photos of the stream ``(N,)`` and their captions ``(N, CONTEXT)``."""

    image_indices: NDArray[np.int64]
    ids: NDArray[np.int64]


def build_clip_config(token_ids: dict[str, int]) -> dict[str, Any]:
    """Write the ``model_cfg`` of an ``open_clip_config.json``."""
    vision = {
        "image_size": IMAGE_SIZE,
        "layers": 4,
        "width": WIDTH,
        "head_width": 32,
        "patch_size": PATCH_SIZE,
        "mlp_ratio": 3.0,
    }
    text = {
        "context_length": CONTEXT,
        "vocab_size": (max(token_ids.values()) + 64) // 64 * 64,
        "hf_tokenizer_name": "local",
        "width": WIDTH,
        "heads": 4,
        "layers": 3,
        "mlp_ratio": 3.0,
        "pool_type": "eos",
        "eos_id": token_ids["<|im_end|>"],
        "pad_id": token_ids["<|endoftext|>"],
    }
    return {"embed_dim": EMBED, "vision_cfg": vision, "text_cfg": text}


def write_clip_caption(rng: np.random.Generator, facts: Facts) -> str:
    """Describe a photo: sparsely like a speaker, or almost fully."""
    keys = mixed_keys(rng)
    if rng.random() < 0.5:
        keys = [key for key in FACT_KEYS if rng.random() < 0.85] or ["color"]
    return join_description(render_coarse(facts["category"]), write_text(rng, facts, keys))


def caption_maker(encoder: ExerciseEncoder, batch: int) -> MakeBatch:
    """Return the function that writers call for a batch of captions."""

    def make(rng: np.random.Generator, facts_of: Any, image_range: tuple[int, int]) -> CaptionBatch:
        indices = rng.integers(*image_range, batch).astype(np.int64)
        texts = [write_clip_caption(rng, facts_of(int(index))) for index in indices]
        ids = np.full((batch, CONTEXT), encoder.pad, np.int64)
        for row, text in enumerate(encoder.tokenizer.encode_batch(texts, add_special_tokens=False)):
            tokens = text.ids[: CONTEXT - 1] + encoder.end
            ids[row, : len(tokens)] = tokens
        return CaptionBatch(indices, ids)

    return make


def train_clip(
    config: ClipTrainingConfig,
    encoder: ExerciseEncoder,
    photos: DevicePool,
    feeder: Feeder,
    output_dir: Path,
) -> None:
    """Train for a set time and write an open_clip folder without its tokenizer."""
    from open_clip.model import CLIP

    torch.manual_seed(config.seed)
    model_config = build_clip_config(encoder.tokenizer.get_vocab())
    model = CLIP(**model_config).to(photos.device)
    feeder.open(photos.pool.num_total)
    first: CaptionBatch = feeder.get()
    indices = torch.as_tensor(first.image_indices, device=photos.device).clone()
    ids = torch.as_tensor(first.ids, device=photos.device).clone()
    mean = torch.tensor(PIXEL_MEAN, device=photos.device).view(1, 3, 1, 1)
    std = torch.tensor(PIXEL_STD, device=photos.device).view(1, 3, 1, 1)
    labels = torch.arange(len(ids), device=photos.device)

    def loss() -> tuple[Tensor, Tensor]:
        with torch.autocast(photos.device, dtype=torch.bfloat16):
            image, text, scale = model(normalise(photos.images(indices), mean, std), ids)[:3]
            logits = (scale * image @ text.T).float()
        value = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        accuracy = (logits.argmax(1) == labels).float().mean()
        return value, torch.stack([value.detach(), accuracy])

    stepper = GraphStepper(loss, list(model.parameters()))
    stepper.record()
    start, step = time.monotonic(), 0
    while (done := (time.monotonic() - start) / config.seconds) < 1:
        step += 1
        batch: CaptionBatch = feeder.get()
        indices.copy_(torch.as_tensor(batch.image_indices))
        ids.copy_(torch.as_tensor(batch.ids))
        warmup = min(1.0, step / config.warmup_steps)
        stepper.set_rates(config.rate * warmup * max(0.02, 1 - done))
        stepper.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, MAX_LOG_SCALE)
        if step % 200 == 0:
            value, accuracy = stepper.log.tolist()
            logger.info("clip: step %d, loss %.3f, accuracy %.3f", step, value, accuracy)
    logger.info("clip: %d steps in %.0f s", step, config.seconds)
    save_clip(model, model_config, output_dir)


def save_clip(model: Any, model_config: dict[str, Any], output_dir: Path) -> None:
    """Write weights (float16) and configuration."""
    output_dir.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().half().contiguous() for k, v in model.state_dict().items()}
    save_file(state, output_dir / "open_clip_model.safetensors")
    content = {"model_cfg": model_config, "preprocess_cfg": {"mean": PIXEL_MEAN, "std": PIXEL_STD}}
    (output_dir / "open_clip_config.json").write_text(json.dumps(content, indent=1) + "\n")
