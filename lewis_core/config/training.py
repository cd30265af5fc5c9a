"""Settings of speaker training: rewards; the rest is in :mod:`lewis_core.config.grpo`."""

from typing import Literal

from pydantic import Field, model_validator

from lewis_core.config.base import FrozenConfig, ModelRef
from lewis_core.config.grpo import GrpoConfig, LoraSettings
from lewis_core.config.watchdogs import HackName, PatienceConfig


class ListenerRewardConfig(FrozenConfig):
    """Reward for being understood: what the listener's P(yes) per candidate is worth."""

    shape: Literal["grounded", "posterior", "margin", "binary", "soft_gated", "soft_always"] = "grounded"
    """``posterior``: softmax over candidates of the yes-minus-no log-odds, at the target. ``grounded``: posterior
    times P(yes | target), so that what is said must also be true of the target. ``margin``: half for ranking the
    target first, half P(yes | target) minus the best distractor's. ``binary``, ``soft_gated``, ``soft_always``: the
    reference's formulas, for comparison."""
    weight: float = Field(default=1.0, ge=0)
    """Weight in the sum of rewards."""
    malformed: float = Field(default=0.0, le=0)
    """Price of a completion that cannot be parsed; the listener does not read it. With ``margin``, -0.5 is the least
    that one which can be read may get."""
    requests: int = Field(default=1, ge=0)
    """Requests under way while completions are still being written. More keep the listener's GPU busier; with one,
    what the listener computes together, and so its rounding, is the same in every run. With 0 all are judged at the
    end, which is best where speaker and listener share the cores of one CPU."""


class FormatRewardConfig(FrozenConfig):
    """Reward for well-formed text: 0.34 thinking, 0.33 coarse, 0.33 detailed."""

    weight: float = Field(default=0.2, ge=0)
    """Weight in the sum of rewards."""
    min_thinking_words: int = Field(default=3, ge=0)
    """Shorter thinking earns nothing for its tag."""


class LengthRewardConfig(FrozenConfig):
    """Reward for a detailed description of reasonable length."""

    shape: Literal["smooth", "reference"] = "smooth"
    """``smooth``: 1 inside the range, falling to 0 within ``slack`` words outside; ``reference``: its penalties."""
    weight: float = Field(default=0.2, ge=0)
    """Weight in the sum of rewards."""
    min_words: int = Field(default=8, ge=1)
    """Fewest words of the detailed text that earn the full reward."""
    max_words: int = Field(default=45, ge=1)
    """Most words of the detailed text that earn the full reward."""
    slack: int = Field(default=10, ge=1)
    """Words outside the range over which the reward falls to 0."""

    @model_validator(mode="after")
    def _is_a_range(self) -> "LengthRewardConfig":
        if self.min_words > self.max_words:
            raise ValueError(f"min_words ({self.min_words}) must not exceed max_words ({self.max_words})")
        return self


class RepetitionRewardConfig(FrozenConfig):
    """Penalty, in [-1, 0], for saying the same thing again: repeated sentences, n-grams and content words."""

    weight: float = Field(default=0.3, ge=0)
    """Weight in the sum of rewards."""


class OverlapRewardConfig(FrozenConfig):
    """Penalty, in [-1, 0], for state or location words in the description (the reference's ROUGE-2 and a lexicon)."""

    weight: float = Field(default=0.0, ge=0)
    """Weight in the sum of rewards."""


class HacksRewardConfig(FrozenConfig):
    """Penalty of -1 for a completion that cheats. All ways are measured in every run, see ``hacks/…``."""

    weight: float = Field(default=1.0, ge=0)
    """Weight in the sum of rewards."""
    penalised: tuple[HackName, ...] = ("copied_names", "listener_talk")
    """Ways that cost something; others have rewards of their own, or are only watched."""


class RewardsConfig(FrozenConfig):
    """All rewards; a weight of 0 switches one off."""

    listener: ListenerRewardConfig = ListenerRewardConfig()
    """Being understood."""
    format: FormatRewardConfig = FormatRewardConfig()
    """Well-formed text."""
    length: LengthRewardConfig = LengthRewardConfig()
    """Reasonable length."""
    repetition: RepetitionRewardConfig = RepetitionRewardConfig()
    """No repetition."""
    overlap: OverlapRewardConfig = OverlapRewardConfig()
    """No state, no location."""
    hacks: HacksRewardConfig = HacksRewardConfig()
    """No cheating."""
    max_masked_frac: float = Field(default=0.1, ge=0, le=1)
    """More samples of a step than this share without a listener answer stop training."""


class TrainSpeakerConfig(GrpoConfig):
    """GRPO training of the speaker against a frozen listener; a prompt is one query photo."""

    listener: ModelRef
    """The frozen listener that judges descriptions."""
    rewards: RewardsConfig = RewardsConfig()
    """What is rewarded."""
    held_out_listener: ModelRef | None = None
    """A second listener, best of another family, that is asked now and then and never trained against; ``None``:
    nobody is."""
    held_out_steps: int = Field(default=20, ge=1)
    """Updates between its measurements."""
    held_out_games: int = Field(default=32, ge=1)
    """Training games that it is always asked about, with one new description each."""
    patience: PatienceConfig = PatienceConfig()
    """How long training waits for a listener that does not answer."""

    @model_validator(mode="after")
    def _waits_for_each_other(self) -> "TrainSpeakerConfig":
        longest = max(self.patience.outage_s, self.patience.busy_s)
        if self.num_processes > 1 and self.distributed.timeout_s <= longest:
            raise ValueError(
                f"distributed.timeout_s ({self.distributed.timeout_s}) must be longer than patience.outage_s and "
                f"patience.busy_s ({longest:g}): a process that waits so long for the listener would end the others"
            )
        return self


__all__ = ["LoraSettings", "RewardsConfig", "TrainSpeakerConfig"]
