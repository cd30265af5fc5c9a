"""Settings of the pocket world: what is rendered."""

from typing import Annotated, Literal

from pydantic import Field

from lewis_core.config.base import FrozenConfig

Category = Literal["mug", "bag", "bottle", "box", "hat", "shoe", "umbrella", "lamp", "bear", "vase"]


class PocketWorldConfig(FrozenConfig):
    """How many photos of how many look-alikes are rendered, and how."""

    seed: int = 101
    """Seed of the concepts and of every photo; another seed is another world."""
    categories: Annotated[tuple[Category, ...], Field(min_length=1)] | Literal["all"] = "all"
    """Categories to render, or all ten of them."""
    concepts_per_category: int = Field(default=20, ge=2, le=200)
    """Look-alike concepts of each category."""
    train_photos: int = Field(default=5, ge=1)
    """Photos of each concept in ``train``."""
    test_photos: int = Field(default=5, ge=0)
    """Photos of each concept in ``test``."""
    image_size: int = Field(default=112, ge=56, le=448)
    """Width and height in pixels; the pocket models were trained on 112."""
    quality: int = Field(default=90, ge=1, le=95)
    """JPEG quality."""
