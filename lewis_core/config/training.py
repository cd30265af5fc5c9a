"""Settings of speaker training: adapter, rewards, optimisation."""

from typing import Literal

from pydantic import Field

from lewis_core.config.base import FrozenConfig, ModelRef


class LoraSettings(FrozenConfig):
    """The LoRA adapter."""

    r: int = Field(default=64, ge=1)
    """Rank."""
    alpha: int = Field(default=128, ge=1)
    """Scale: the update is multiplied by alpha / r."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Linear layers of the language model that are adapted; the vision tower stays frozen."""


class ListenerRewardConfig(FrozenConfig):
    """Reward for being understood: what the listener's P(yes) per candidate is worth."""

    shape: Literal["grounded", "posterior", "margin", "binary", "soft_gated", "soft_always"] = "grounded"
    """``posterior``: softmax over candidates of the yes-minus-no log-odds, at the target. ``grounded``: posterior
    times P(yes | target), so that what is said must also be true of the target. ``margin``: half for ranking the
    target first, half P(yes | target) minus the best distractor's. ``binary``, ``soft_gated``, ``soft_always``: the
    reference's formulas, for comparison."""
    weight: float = Field(default=1.0, ge=0)
    """Weight in the sum of rewards."""
    malformed: float = 0.0
    """Price of a completion that cannot be parsed; the listener does not read it."""
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


class RepetitionRewardConfig(FrozenConfig):
    """Penalty, in [-1, 0], for saying the same thing again: repeated sentences, n-grams and content words."""

    weight: float = Field(default=0.3, ge=0)
    """Weight in the sum of rewards."""


class OverlapRewardConfig(FrozenConfig):
    """Penalty, in [-1, 0], for state or location words in the description (the reference's ROUGE-2 and a lexicon)."""

    weight: float = Field(default=0.0, ge=0)
    """Weight in the sum of rewards."""


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
    max_masked_frac: float = Field(default=0.1, ge=0, le=1)
    """More samples of a step than this share without a listener answer stop training."""


class TrainSpeakerConfig(FrozenConfig):
    """GRPO training of the speaker against a frozen listener."""

    model: ModelRef
    """The speaker that is trained (its ``adapter``, if any, is continued)."""
    listener: ModelRef
    """The frozen listener that judges descriptions."""
    lora: LoraSettings = LoraSettings()
    """The adapter."""
    rewards: RewardsConfig = RewardsConfig()
    """What is rewarded."""
    max_steps: int = Field(default=60, ge=1)
    """Optimiser updates."""
    prompts_per_step: int = Field(default=8, ge=1)
    """Query photos of one update, over all processes and accumulation steps."""
    num_generations: int = Field(default=8, ge=2)
    """G: completions sampled for each query photo; their rewards are compared with each other."""
    micro_batch_prompts: int | None = Field(default=None, ge=1)
    """Query photos of one forward and backward pass; ``None``: by tokens. The loss is the same, but for ``bnpo``, which
    averages over a pass by definition."""
    micro_batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens of one pass, a photo's prompt counted once and its completions at full length; ``None``: as many as
    memory allows, by an estimate that is logged."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate."""
    warmup_steps: int = Field(default=3, ge=0)
    """Updates over which the learning rate rises to its peak."""
    lr_scheduler: Literal["constant_with_warmup", "linear", "cosine"] = "constant_with_warmup"
    """Course of the learning rate after warm-up."""
    beta: float = Field(default=0.04, ge=0)
    """Weight of the KL term that holds the speaker near its base."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature of the rollouts."""
    max_new_tokens: int = Field(default=128, ge=8)
    """Longest completion, in tokens."""
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo"] = "dr_grpo"
    """TRL's loss."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """What advantages are divided by."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Trade computation for memory. ``auto``: only if activations do not fit, by an estimate that is logged; if memory
    runs out all the same, a single process switches it on and repeats the pass."""
    save_steps: int = Field(default=20, ge=1)
    """Updates between checkpoints; a killed run resumes from the last one."""
    sample_steps: int = Field(default=10, ge=1)
    """Updates between logged tables of sample completions."""
    num_processes: int = Field(default=1, ge=1)
    """Processes of ``accelerate launch``, one per GPU."""
    seed: int = 0
    """Seed of the data order, the adapter and the rollouts."""
