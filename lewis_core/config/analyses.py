"""Settings of the analyses, which look behind the evaluations' numbers."""

from pathlib import Path

from pydantic import Field, field_validator

from lewis_core.config.base import FrozenConfig
from lewis_core.config.processing import JudgeConfig


class UncertaintyConfig(FrozenConfig):
    """Does the model know when it is wrong?"""

    low_entropy: float = Field(default=0.05, ge=0, le=1)
    """An answer is certain below this share of the greatest possible entropy."""
    listed: int = Field(default=20, ge=0)
    """Certain and uncertain mistakes that are listed, of each kind."""


class ExamplesConfig(FrozenConfig):
    """Items that one speaker has right and the other wrong."""

    listed: int = Field(default=24, ge=0)
    """Items listed of each evaluation and direction."""


class BagsConfig(FrozenConfig):
    """The game with few and with many candidates."""

    sizes: tuple[int, ...] = (3, 10, 30)
    """Candidates, the target among them; the smaller bags hold the nearest look-alikes of the greater ones."""
    rounds_per_concept: int = Field(default=1, ge=1)
    """Rounds per concept, each with another target photo."""
    seed: int = 0
    """Seed of the targets."""

    @field_validator("sizes")
    @classmethod
    def _can_be_played(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if not sizes or min(sizes) < 2 or max(sizes) > 64 or sorted(set(sizes)) != list(sizes):
            raise ValueError("expected growing numbers from 2 to 64, each once")
        return sizes


class HallucinationConfig(FrozenConfig):
    """What descriptions claim that is not so."""

    reference: Path | None = None
    """JSON file of true attributes, ``{concept id: ["red", "leather", …]}``, for photos whose truth is not known
    otherwise."""
    listed: int = Field(default=50, ge=0)
    """False claims that are listed."""


class VisualConfig(FrozenConfig):
    """Questions that were answered wrongly from descriptions, asked again with the reference photos in one picture."""

    max_items: int = Field(default=200, ge=1)
    """Wrong answers asked again; as many right ones are asked again for comparison."""
    height: int = Field(default=512, ge=56, le=2048)
    """Height of each photo in the picture, in pixels."""
    seed: int = 0
    """Seed of the choice among more."""


class AnalysesConfig(FrozenConfig):
    """What the flow ``analyse`` does beyond the evaluations."""

    uncertainty: UncertaintyConfig = UncertaintyConfig()
    """Entropy and margin against correctness."""
    examples: ExamplesConfig = ExamplesConfig()
    """Where speakers differ."""
    bags: BagsConfig | None = BagsConfig()
    """Harder games, with every listener; ``None``: not played."""
    hallucination: HallucinationConfig = HallucinationConfig()
    """False claims."""
    judge: JudgeConfig | None = None
    """A judge of state and location in every speaker's descriptions, beside the word list; ``None``: none is asked."""
    visual: VisualConfig | None = None
    """Asking again with photos; ``None``: not done."""
