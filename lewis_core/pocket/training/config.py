"""Settings of the training of the pocket models."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from lewis_core.config.base import FrozenConfig


class StreamConfig(FrozenConfig):
    """The stream of random things that models are trained on; never the concepts of a world."""

    seed: int = 1
    """Seed of all things and scenes of the stream."""
    num_images: int = Field(default=114_688, ge=1)
    """Rendered photos to train on."""
    chunk: int = Field(default=8_192, ge=1)
    """Photos per unit of work; one more chunk is rendered for validation."""
    num_renderers: int = Field(default=15, ge=1)
    """Processes that render."""
    num_writers: int = Field(default=14, ge=1)
    """Processes that write and encode exercises."""
    scratch_dir: Path = Path("/dev/shm")
    """Where pixels lie while training; removed afterwards."""


class VlmTrainingConfig(FrozenConfig):
    """How one vision-language checkpoint is trained: first to see, then to do all exercises."""

    size: Literal["test", "s", "m"] = "m"
    """Model dimensions."""
    seed: int = 1
    """Seed of weights and augmentation."""
    see_seconds: float = Field(default=85, gt=0)
    """Time for the vision tower alone, through attribute heads."""
    learn_seconds: float = Field(default=310, gt=0)
    """Time for all exercises."""
    images_per_see_step: int = Field(default=512, ge=1)
    """Photos of one step of the first phase."""
    images_per_learn_step: int = Field(default=192, ge=1)
    """Photos of one step of the second phase; several exercises share one."""
    exercise_scale: float = Field(default=1.0, gt=0)
    """Factor on the number of exercises per step."""
    see_rate: float = Field(default=1.5e-3, gt=0, le=1)
    """Highest learning rate of the first phase."""
    learn_rate: float = Field(default=1.5e-3, gt=0, le=1)
    """Highest learning rate of the language model in the second phase."""
    learn_vision_rate: float = Field(default=5e-4, gt=0, le=1)
    """Highest learning rate of the vision tower in the second phase."""
    probe_weight: float = Field(default=0.3, ge=0)
    """Weight of the attribute heads in the second phase."""
    warmup_steps: int = Field(default=200, ge=1)
    """Steps of linear warm-up of either phase."""
    weight_decay: float = Field(default=0.05, ge=0, le=1)
    """AdamW's decay of matrices."""


class ClipTrainingConfig(FrozenConfig):
    """How the contrastive model is trained."""

    seed: int = 1
    """Seed of the weights."""
    seconds: float = Field(default=50, gt=0)
    """Time for training."""
    batch: int = Field(default=1024, ge=2)
    """Photos, with a caption each, of one step."""
    rate: float = Field(default=1.5e-3, gt=0, le=1)
    """Highest learning rate."""
    warmup_steps: int = Field(default=100, ge=1)
    """Steps of linear warm-up."""


class PocketBuildConfig(FrozenConfig):
    """Everything that the shipped models are made from.

    Budgets are times, so that a build fits a rented machine; the number of steps, and with it the
    exact weights, therefore depends on the hardware.
    """

    base_stream: StreamConfig = StreamConfig(seed=1)
    """What base and clip see."""
    base: VlmTrainingConfig = VlmTrainingConfig(size="m", seed=1)
    """The speaker's start, and the default listener."""
    clip: ClipTrainingConfig = ClipTrainingConfig()
    """The retrieval model."""
    listener_stream: StreamConfig = StreamConfig(seed=2, num_images=90_112)
    """What the independent listener sees: other things, rendered from another seed."""
    listener: VlmTrainingConfig = VlmTrainingConfig(size="s", seed=2, see_seconds=62, learn_seconds=225)
    """The independent listener, for evaluation only."""
    device: Literal["cuda", "cpu"] = "cuda"
    """Where to train; a CPU needs days for the default budgets' number of steps."""
