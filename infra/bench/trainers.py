"""Trainers of random speakers: stock TRL, and ours as the product puts it together."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from trl import GRPOConfig, GRPOTrainer

from infra.bench import world
from lewis_core.config.base import ModelRef, Runtime
from lewis_core.config.training import LoraSettings, TrainSpeakerConfig
from lewis_core.models.images import ImageFolder
from lewis_core.training.assemble import adapter_config, assemble_trainer, training_arguments
from lewis_core.training.memory import Plan

INSTRUCTION = "Describe the mug in this photo so that somebody who has never seen it can find it among others like it."


@dataclass(frozen=True)
class Shape:
    """Sizes of a training step."""

    visual_tokens: int
    prompts: int
    group: int
    """Completions of a prompt."""
    new_tokens: int
    rank: int = 64
    candidates: int = 4
    beta: float = 0.0


def settings(shape: Shape, **changes: Any) -> TrainSpeakerConfig:
    """The product's settings for a shape."""
    model = ModelRef(path="pocket:base", max_pixels=shape.visual_tokens * world.PIXELS_PER_TOKEN**2)
    return TrainSpeakerConfig(
        model=model,
        listener=model,
        lora=LoraSettings(r=shape.rank, alpha=2 * shape.rank),
        prompts_per_step=shape.prompts,
        num_generations=shape.group,
        max_new_tokens=shape.new_tokens,
        beta=shape.beta,
        max_steps=1000,
        save_steps=100_000,
        learning_rate=1e-5,
        **changes,
    )


def make_rows(shape: Shape, photos: list[str]) -> list[dict[str, Any]]:
    """Training rows: a photo to describe, and candidates of which it is the first."""
    return [
        {
            "prompt": [{"role": "user", "content": INSTRUCTION}],
            "query": photos[number],
            "candidates": [photos[(number + step) % len(photos)] for step in range(shape.candidates)],
            "target_index": 0,
            "category_word": "mug",
        }
        for number in range(shape.prompts)
    ]


def ours(
    model: Any,
    processor: Any,
    folder: Path,
    rows: list[dict[str, Any]],
    shape: Shape,
    rewards: list[Any],
    **changes: Any,
) -> Any:
    """The product's trainer."""
    config = settings(shape, **changes)
    work = folder / f"ours-{len(list(folder.iterdir()))}"
    work.mkdir()
    trainer = assemble_trainer(
        model,
        processor,
        Dataset.from_list(rows),
        ImageFolder(folder),
        rewards,
        [1.0] * len(rewards),
        work,
        config,
        Runtime(device=model.device.type, num_workers=8),
    )
    return _ready(trainer)


def stock(
    model: Any,
    processor: Any,
    folder: Path,
    rows: list[dict[str, Any]],
    shape: Shape,
    rewards: list[Any],
    checkpointing: bool = True,
    micro_batch: int = 1,
) -> Any:
    """TRL's trainer, with photos in the data set, the same optimisation, and one group a pass.

    Args:
        model: The speaker.
        processor: Its processor.
        folder: Photos.
        rows: Training rows.
        shape: Sizes of a step.
        rewards: TRL's reward functions.
        checkpointing: TRL's default is true.
        micro_batch: Prompts of one pass.
    """
    config = settings(shape, gradient_checkpointing=checkpointing, micro_batch_prompts=micro_batch)
    arguments: GRPOConfig = training_arguments(
        config, Plan(micro_batch, checkpointing), [1.0] * len(rewards), folder / "stock", model.device.type
    )
    table = Dataset.from_list([row | {"image": str(folder / row["query"])} for row in rows])
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=rewards,
        args=arguments,
        train_dataset=table.cast_column("image", ImageFeature()),
        processing_class=processor,
        peft_config=adapter_config(model, config.lora),
    )
    return _ready(trainer)


def _ready(trainer: Any) -> Any:
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def never_ends(trainer: Any) -> None:
    """Let every completion have its full length, whatever the random weights say."""
    trainer.generation_config.min_new_tokens = trainer.max_completion_length
    if hasattr(trainer, "_sampler"):
        trainer._sampler._eos = frozenset()


def fixed_inputs(trainer: Any, rows: list[dict[str, Any]], shape: Shape, ids: list[list[int]]) -> dict[str, Any]:
    """What a micro-batch of given completions looks like to ``_compute_loss``.

    Args:
        trainer: Either trainer.
        rows: Rows of the micro-batch, one a prompt.
        shape: Sizes.
        ids: Prompt of each row.
    """
    generator = torch.Generator().manual_seed(0)
    count, device = len(rows) * shape.group, trainer.accelerator.device
    completions = torch.randint(0, 200, (count, shape.new_tokens), generator=generator)
    width = max(map(len, ids))
    pad = trainer.processing_class.tokenizer.pad_token_id
    prompts = torch.tensor([[pad] * (width - len(row)) + row for row in ids]).repeat_interleave(shape.group, 0)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids]).repeat_interleave(shape.group, 0)
    inputs = {
        "prompt_ids": prompts,
        "prompt_mask": mask,
        "completion_ids": completions,
        "completion_mask": torch.ones_like(completions),
        "advantages": torch.randn(count, generator=generator),
        "num_items_in_batch": torch.tensor(float(completions.numel())),
        "prompt_of_row": torch.arange(len(rows)).repeat_interleave(shape.group),
    }
    return {name: value.to(device) for name, value in inputs.items()}


def pixel_inputs(trainer: Any, folder: Path, rows: list[dict[str, Any]], shape: Shape, inputs: dict[str, Any]) -> None:
    """Add what stock TRL needs of photos: pixels of every completion's own copy."""
    images = ImageFolder(folder)
    photos = [images.load(row["query"]) for row in rows for _ in range(shape.group)]
    found = trainer.processing_class.image_processor(images=photos, return_tensors="pt").to(trainer.accelerator.device)
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    inputs |= {
        "pixel_values": found["pixel_values"],
        "image_grid_thw": found["image_grid_thw"],
        "num_images": [1] * len(photos),
        "mm_token_type_ids": (ids == trainer.model.config.image_token_id).long(),
    }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of libraries about each other."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
