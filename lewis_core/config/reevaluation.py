"""Settings of re-evaluation: which checkpoints are looked at, and when one becomes the champion."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from lewis_core.config.base import FrozenConfig


class ChampionConfig(FrozenConfig):
    """When a registered checkpoint takes the alias ``champion`` from the one that has it."""

    promote: bool = True
    """Set the alias in the model registry; otherwise the leaderboard only says who would have earned it."""
    evaluation: Literal["game", "identification", "recognition", "vqa"] = "game"
    """The evaluation that decides."""
    metric: str | None = None
    """Its number that decides, e.g. ``f1`` of recognition; ``None``: its headline. Only numbers that are tested in
    comparisons can decide."""
    answering: Literal["listener", "independent"] | None = None
    """Whose game decides; ``None``: the independent listener's if there is one, as no training has seen it. The other
    evaluations have one answering model."""
    max_p_value: float = Field(default=0.01, gt=0, le=1)
    """Paired test against the champion on the same items; a small number, because every new checkpoint is a try."""
    min_difference: float = Field(default=0.0, ge=0)
    """Smallest gain worth a new champion, in the metric's unit."""


class ReevaluationConfig(FrozenConfig):
    """What the flow ``reevaluate-checkpoints`` looks for, and what it does with it."""

    registry: bool = True
    """Evaluate every version of ``run.tracking.registered_model``."""
    watch: Path | None = None
    """Folder; every adapter folder that appears in it, at any depth, is evaluated too."""
    settle_s: float = Field(default=60.0, ge=0)
    """A watched adapter is left alone until nothing in it was changed for so long."""
    champion: ChampionConfig = ChampionConfig()
    """Who is best."""
    notification_block: str | None = Field(default=None, pattern=r"^[a-z0-9-]+/[a-z0-9-]+$")
    """Prefect block that gets a message when there is something new, as ``type/name``, e.g. ``slack-webhook/lab``."""
