"""Settings of listener training: yes-or-no questions about photos, rewarded for the right answer."""

from typing import Literal

from pydantic import Field, model_validator

from lewis_core.config.base import FrozenConfig
from lewis_core.config.grpo import GrpoConfig
from lewis_core.config.watchdogs import WatchdogsConfig


class ConsistencyRewardConfig(FrozenConfig):
    """Reward for an answer that agrees with what the photos show."""

    shape: Literal["plain", "weighted"] = "weighted"
    """``plain``: 1 for the right answer, else 0. ``weighted``: the prices below."""
    weight: float = Field(default=1.0, ge=0)
    """Weight in the sum of rewards."""
    right: float = 1.0
    """Of the right answer."""
    false_yes: float = -1.0
    """Of a yes where no is right: a listener that says yes too often makes every description look good."""
    false_no: float = -0.3
    """Of a no where yes is right."""
    unreadable: float = -1.0
    """Of a completion without an answer. Not better than any wrong answer (the reference has 0, so that saying nothing
    pays)."""

    @model_validator(mode="after")
    def _prefers_the_right_answer(self) -> "ConsistencyRewardConfig":
        if self.shape == "weighted" and self.right <= max(self.false_yes, self.false_no, self.unreadable):
            raise ValueError(f"right ({self.right:g}) must be worth more than false_yes, false_no and unreadable")
        return self


class AnswerFormatConfig(FrozenConfig):
    """Reward for the form that the prompt asks for: 1 or 0."""

    weight: float = Field(default=0.2, ge=0)
    """Weight in the sum of rewards."""
    min_thinking_words: int = Field(default=3, ge=0)
    """Where the prompt asks for thinking: shorter thinking earns nothing."""


class ListenerRewardsConfig(FrozenConfig):
    """All rewards of a listener; a weight of 0 switches one off."""

    consistency: ConsistencyRewardConfig = ConsistencyRewardConfig()
    """The right answer."""
    format: AnswerFormatConfig = AnswerFormatConfig()
    """The asked form."""


class TrainListenerConfig(GrpoConfig):
    """GRPO training of a listener; a prompt is one question about one photo or two."""

    questions: Literal["pairs", "descriptions"] = "pairs"
    """``pairs``: do two photos show the same thing? ``descriptions``: does the speaker's description of one photo fit
    another, the very question of the game. What is rewarded is what is learnt: only the second trains the game's own
    question."""
    rewards: ListenerRewardsConfig = ListenerRewardsConfig()
    """What is rewarded."""
    held_out_questions: int = Field(default=200, ge=0)
    """Questions about held-out concepts that are asked before training, now and then, and at the end, and never
    trained on: what was really learnt. 0: none; nor are there any without held-out concepts."""
    held_out_steps: int = Field(default=20, ge=1)
    """Updates between asking them."""
    watchdogs: WatchdogsConfig = WatchdogsConfig(min_mean_tokens=0.5, equal_rewards_frac=1.0, stop_after=200)
    """Limits for answers, which are short, and often all alike."""


class IterateConfig(FrozenConfig):
    """Rounds of the flow ``iterate``: speaker, then listener, then speaker, and so on."""

    rounds: int = Field(default=2, ge=1, le=20)
    """Each trains the speaker against the listener of the round before, and then the listener, which starts where it
    stood."""
    train_last_listener: bool = False
    """Whether the last round trains its listener too, for which no speaker is trained any more."""
