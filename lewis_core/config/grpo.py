"""Settings that training by GRPO has in common, whoever is trained: adapter, optimisation, processes, limits."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from lewis_core.config.base import FrozenConfig, ModelRef
from lewis_core.config.watchdogs import WatchdogsConfig

Average = Annotated[float, Field(ge=0, lt=1)]
"""Share of the old value in a running average."""
Strategy = Literal["ddp", "zero2", "zero2_offload", "zero3", "zero3_offload"]


class LoraSettings(FrozenConfig):
    """The LoRA adapter."""

    r: int = Field(default=64, ge=1, le=8192)
    """Rank; no more than the language model is wide."""
    alpha: int = Field(default=128, ge=1)
    """Scale: the update is multiplied by alpha / r."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    target_modules: tuple[str, ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), min_length=1
    )
    """Linear layers of the language model that are adapted; the vision tower stays frozen."""


class DistributedConfig(FrozenConfig):
    """How the processes of a training share the work.

    Addresses and ranks of machines are no settings: see ``infra/docs/training.md``.
    """

    strategy: Strategy = "ddp"
    """``ddp``: every GPU holds the whole model. ``zero2``: optimiser states and gradients are spread over the GPUs
    (pays in full fine-tuning; an adapter's are small). ``zero3``: weights too, for models that do not fit one GPU;
    rollouts are TRL's own then, and slow. ``…_offload``: what is spread lies in the machines' memory."""
    num_machines: int = Field(default=1, ge=1)
    """Machines, each with the same share of ``num_processes``."""
    gather_for_rollouts: bool = True
    """Under ZeRO-3: bring the whole model together on every GPU while completions are written, which is many times
    faster; switch it off for a model that does not fit one GPU at all."""
    timeout_s: int = Field(default=1800, ge=10)
    """A process that waits longer than this for the others ends with an error. Longer than the longest outage of the
    listener that is waited for."""

    @property
    def shards_weights(self) -> bool:
        """Whether no process holds the whole model."""
        return self.strategy.startswith("zero3")


class GrpoConfig(FrozenConfig):
    """GRPO of a vision-language model: what is common to speakers and listeners."""

    model: ModelRef
    """The model that is trained (its ``adapter``, if any, is continued)."""
    lora: LoraSettings = LoraSettings()
    """The adapter."""
    full_finetuning: bool = False
    """Train all weights of the language model instead of an adapter; the vision tower stays frozen."""
    distributed: DistributedConfig = DistributedConfig()
    """Several GPUs and machines."""
    max_steps: int = Field(default=60, ge=1)
    """Optimiser updates."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the data set, in place of ``max_steps``."""
    prompts_per_step: int = Field(default=8, ge=1)
    """Prompts of one update, over all processes and accumulation steps."""
    num_generations: int = Field(default=8, json_schema_extra={"minimum": 2})
    """G: completions sampled for each prompt; their rewards are compared with each other."""
    micro_batch_prompts: int | None = Field(default=None, ge=1)
    """Prompts of one forward and backward pass; ``None``: by tokens. The loss is the same, but for ``bnpo``, which
    averages over a pass by definition."""
    micro_batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens of one pass, a prompt counted once and its completions at full length; ``None``: as many as memory
    allows, by an estimate that is logged."""
    learning_rate: float = Field(default=1e-5, gt=0, le=1)
    """Peak learning rate; adapters take 1e-6 to 1e-3."""
    warmup_steps: int = Field(default=3, ge=0)
    """Updates over which the learning rate rises to its peak."""
    lr_scheduler: Literal["constant_with_warmup", "linear", "cosine"] = "constant_with_warmup"
    """Course of the learning rate after warm-up."""
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    """Decay of AdamW."""
    adam_betas: tuple[Average, Average] = (0.9, 0.999)
    """Averages of AdamW."""
    beta: float = Field(default=0.04, ge=0)
    """Weight of the KL term that holds the model near what it starts from: its base, or its adapter as it was."""
    temperature: float = Field(default=1.0, gt=0, le=10)
    """Sampling temperature of the rollouts."""
    max_new_tokens: int = Field(default=128, ge=8)
    """Longest completion, in tokens."""
    max_prompt_tokens: int | None = Field(default=None, ge=1)
    """Prompts with more tokens, visual ones counted, are refused before training; ``None``: only the model's own limit
    counts. Nothing is ever truncated."""
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "vespo", "luspo"] = "dr_grpo"
    """TRL's loss."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """Ratios per token, or one per completion (GSPO: with loss ``grpo``)."""
    epsilon: float = Field(default=0.2, gt=0, le=1)
    """Clipping of ratios below 1, and above unless ``epsilon_high`` is set."""
    epsilon_high: float | None = Field(default=None, gt=0)
    """Clipping of ratios above 1; with the loss ``cispo``, the largest ratio itself, e.g. 5."""
    num_iterations: int = Field(default=1, ge=1)
    """Updates made of one generation of completions."""
    mask_truncated_completions: bool = False
    """Leave completions that were cut off at ``max_new_tokens`` out of the loss."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """What advantages are divided by."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Trade computation for memory. ``auto``: only if activations do not fit, by an estimate that is logged; if memory
    runs out all the same, a single process switches it on and repeats the pass."""
    rollouts: Literal["auto", "shared_prefix", "trl"] = "auto"
    """Who writes completions: Lewis's sampler, which reads a prompt once and replays CUDA graphs, or TRL's. ``auto``:
    ours wherever a process holds the whole model, TRL's under ZeRO-3."""
    memory_check: Literal["refuse", "warn"] = "refuse"
    """What is done when the memory that is needed, by an estimate from the model's ``config.json``, is more than the
    GPUs have."""
    save_steps: int = Field(default=20, ge=1)
    """Updates between checkpoints; a killed run resumes from the last one."""
    sample_steps: int = Field(default=10, ge=1)
    """Updates between logged tables of sample completions."""
    watchdogs: WatchdogsConfig = WatchdogsConfig()
    """When training is warned about and stopped."""
    num_processes: int = Field(default=1, ge=1)
    """Processes of ``accelerate launch`` on all machines together, one per GPU."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the data order, the adapter and the rollouts."""

    @field_validator("num_generations")
    @classmethod
    def _can_compare(cls, number: int) -> int:
        if number < 2:
            raise ValueError(
                "GRPO compares the completions of a prompt with each other, so it takes at least 2 of them (8 is usual)"
            )
        return number

    @model_validator(mode="after")
    def _fits_together(self) -> Any:
        problems = [*self._batch_problems(), *self._engine_problems()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _batch_problems(self) -> list[str]:
        processes, machines = self.num_processes, self.distributed.num_machines
        if processes % machines:
            return [
                f"num_processes ({processes}) must be a multiple of distributed.num_machines ({machines}): every "
                "machine runs as many"
            ]
        problem = split_problem(self.prompts_per_step, self.micro_batch_prompts, processes)
        return [problem] if problem else []

    def _engine_problems(self) -> list[str]:
        problems = []
        if self.distributed.shards_weights and self.rollouts == "shared_prefix":
            problems.append(
                f"distributed.strategy is {self.distributed.strategy!r}, which spreads the weights over processes, and "
                "rollouts = 'shared_prefix' needs them whole (its CUDA graphs read them in place); set rollouts to "
                "'auto' (TRL's sampler, slow), or the strategy to 'zero2' or 'ddp' if the model fits one GPU"
            )
        if self.distributed.shards_weights and self.model.adapter is not None:
            problems.append(
                "an adapter cannot be continued under ZeRO-3; merge it into the base first, or use 'zero2' or 'ddp'"
            )
        if self.loss_type == "cispo" and (self.epsilon_high is None or self.epsilon_high < 1):
            problems.append(
                "the loss 'cispo' cuts ratios off at epsilon_high itself, so one below 1 scales every update down; "
                "set epsilon_high, e.g. to 5.0"
            )
        if self.full_finetuning and self.model.adapter is not None:
            problems.append("full_finetuning trains the base itself; merge model.adapter into it first, or unset one")
        return problems

    def steps(self, rows: int) -> int:
        """Optimiser updates with a data set of a number of rows."""
        if self.epochs is None:
            return self.max_steps
        return max(1, int(round(self.epochs * rows * self.num_iterations / self.prompts_per_step, 6)))


def split_problem(prompts_per_step: int, micro_batch_prompts: int | None, processes: int) -> str | None:
    """Say why a step's prompts cannot be split over processes and passes, and what would do; ``None`` if they can."""
    if prompts_per_step % processes:
        near = max(processes, round(prompts_per_step / processes) * processes)
        return (
            f"prompts_per_step is {prompts_per_step}, which {processes} processes cannot share equally; make it a "
            f"multiple of {processes}, e.g. {near}"
        )
    share = prompts_per_step // processes
    micro = min(micro_batch_prompts or share, share)
    if share % micro:
        fitting = [n for n in range(1, share + 1) if share % n == 0]
        return (
            f"micro_batch_prompts is {micro}, which does not divide the {share} prompts of each process "
            f"({prompts_per_step} prompts over {processes} processes); take one of {fitting}"
        )
    return None
