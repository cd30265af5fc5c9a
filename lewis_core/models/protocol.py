"""What the game, description generation and the evaluations need of a model, in this process or over HTTP."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from lewis_core.listener.schemas import (
    CacheStatistics,
    ChoiceAnswer,
    ChoiceItem,
    GameScores,
    GenerateItem,
    ScoreGame,
)


class AnsweringModel(Protocol):
    """A vision-language model that scores games, chooses answers and writes text.

    ``VisionLanguageModel`` runs in this process, ``HttpModel`` asks a service, ``FakeModel`` (in
    :mod:`lewis_core.testing`) answers from a function. An outage raises; it is never an answer.
    """

    def score(self, games: Sequence[ScoreGame]) -> list[GameScores]:
        """Score every description of each game against every candidate."""

    def choose(self, items: Sequence[ChoiceItem]) -> list[list[ChoiceAnswer]]:
        """Answer multiple-choice questions about images."""

    def generate(self, items: Sequence[GenerateItem]) -> list[list[str]]:
        """Continue prompts; completions without prompt and special tokens."""


@runtime_checkable
class KeepsImages(Protocol):
    """A model that may keep what it has computed for images, and says how well that works; from any thread."""

    def vision_cache(self) -> CacheStatistics | None:
        """Vision features as they are kept now; ``None`` if none are."""

    def prompt_cache(self) -> CacheStatistics | None:
        """Keys and values as they are kept now; ``None`` if none are."""


def computes_here(model: object) -> bool:
    """Whether a model computes on this process's CPU: asking it is work then, and not waiting."""
    return bool(getattr(model, "computes_here", False))
