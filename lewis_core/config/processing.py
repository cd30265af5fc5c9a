"""Settings of description processing: judging talk of state and place, and taking it out."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from lewis_core.config.base import FrozenConfig, ModelRef

RefineMode = Literal["state", "location", "location_and_state"]


class JudgeConfig(FrozenConfig):
    """Who finds, or takes out, talk of state and place, and how it is asked."""

    method: Literal["json", "yes_no", "lexicon"] = "json"
    """``json``: a language model reads several texts and writes JSON. ``yes_no``: a model is asked two questions about
    each text, and its probabilities of yes and no decide; it judges, and texts are refined by word list. ``lexicon``: a
    word list, without a model."""
    model: ModelRef = ModelRef(path="Qwen/Qwen3-8B")
    """A causal language model or a vision-language model; not loaded for ``lexicon``."""
    items_per_prompt: int = Field(default=2, ge=1, le=16)
    """Texts in one prompt of ``json``; those that were not answered are asked for again one by one."""
    attempts: int = Field(default=3, ge=1, le=8)
    """How often a text is asked about before it is listed as failed; from the third time on, answers are sampled."""
    max_new_tokens: int = Field(default=512, ge=16, le=4096)
    """Longest answer to one prompt, in tokens."""
    fail_on_error: bool = False
    """End with an error when any text failed, instead of listing it."""
    seed: int = 0
    """Seed of sampled answers."""


class ProcessingConfig(FrozenConfig):
    """What is done with a file of descriptions."""

    file: Path
    """A ``database.json`` of this program, or the reference's ``descriptions_*.json`` or ``database_*.json``."""
    refine: Literal["none", "state", "location", "location_and_state"] = "none"
    """What is taken out of the texts; ``none`` judges only."""
    judge: JudgeConfig = JudgeConfig()
    """Who judges and refines."""
