"""When training is warned about and stopped, and what is held against a completion."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from lewis_core.config.base import FrozenConfig

HackName = Literal[
    "repetition",
    "tag_stuffing",
    "copied_names",
    "empty",
    "template_echo",
    "listener_talk",
    "state",
    "location",
    "malformed",
]
"""``repetition``: says the same again; ``tag_stuffing``: a tag twice, or tags that nobody asked for; ``copied_names``:
the name of a concept or of a file; ``empty``: nothing is said; ``template_echo``: the prompt's own words;
``listener_talk``: speaks to the listener instead of about the thing; ``state`` and ``location``: passing states,
places; ``malformed``: cannot be read, so that the listener does not see it."""


class WatchdogsConfig(FrozenConfig):
    """Known ways in which training goes wrong. A step is in trouble if one of the limits is passed.

    These settings do not identify the stage: after a stop they can be changed, and the same command goes on from the
    last checkpoint.
    """

    changes_result: ClassVar[bool] = False
    action: Literal["stop", "warn", "off"] = "stop"
    """``stop``: warn, then end training with a WatchdogError and the evidence saved; ``warn``: only warn."""
    warn_after: int = Field(default=5, ge=1)
    """Steps in a row with the same trouble that are warned about."""
    stop_after: int = Field(default=30, ge=1)
    """Steps in a row with the same trouble that end training."""
    non_finite_stop_after: int = Field(default=5, ge=1)
    """The same for losses and gradients that are not finite, whose updates are left out. DeepSpeed cannot leave one
    out, so that there the first one ends training."""
    equal_rewards_frac: float = Field(default=1.0, gt=0, le=1)
    """Reward collapse: at least this share of the groups has equal rewards, and so nothing to learn from."""
    length_factor: float = Field(default=5.0, gt=1)
    """Length collapse and explosion: completions are so many times shorter or longer than in the first steps."""
    min_mean_tokens: float = Field(default=3.0, ge=0)
    """Length collapse: completions have fewer tokens than this on average."""
    max_cut_frac: float = Field(default=0.95, gt=0, le=1)
    """Length explosion: more than this share of completions is cut off at ``training.max_new_tokens``."""
    max_kl: float = Field(default=10.0, gt=0)
    """Drift: a larger KL divergence from the base, in nats per token."""
    max_degenerate_frac: float = Field(default=0.8, gt=0, le=1)
    """Lost language: more than this share of completions repeats itself, is empty, stuffed with tags, or echoes the
    prompt."""
    max_same_answer_frac: float = Field(default=0.95, gt=0.5, le=1)
    """Answer collapse: at least this share of a listener's readable answers is the same, all yes or all no."""
    max_masked_frac: float = Field(default=0.02, ge=0, le=1)
    """More than this share of completions that the listener cannot judge, step after step (one step with more than
    ``training.rewards.max_masked_frac`` ends training at once)."""

    @model_validator(mode="after")
    def _warn_before_they_stop(self) -> "WatchdogsConfig":
        if self.action == "stop" and self.stop_after < self.warn_after:
            raise ValueError(
                f"stop_after ({self.stop_after}) must not be below warn_after ({self.warn_after}): training would end "
                "without a warning; lower warn_after too"
            )
        return self


class PatienceConfig(FrozenConfig):
    """How long training waits for a listener that does not answer, before it saves itself and ends.

    The flow starts the listener again and training goes on where it stopped. No part of the stage's identity.
    """

    changes_result: ClassVar[bool] = False
    outage_s: float = Field(default=60.0, ge=0)
    """Longest time over which a request is tried again while nobody answers."""
    busy_s: float = Field(default=900.0, ge=0)
    """The same while the listener says that it is busy, or loading its model."""
