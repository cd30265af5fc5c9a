"""How many prompts go into one forward and backward pass, and whether activations are kept or computed again."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from lewis_core.config.grpo import GrpoConfig
from lewis_core.models.features import backbone
from lewis_core.models.loading import free_bytes

logger = logging.getLogger(__name__)
USED_SHARE = 0.75
"""Share of the free memory that activations may take by estimate."""
PROMPT_TEXT = 256
"""Tokens of a prompt's text, at most (a guess that errs on the safe side)."""
LEAST_PROMPTS = 2
"""Fewer prompts in one pass cost more than checkpointing does."""
MOST_TOKENS = 16_384
"""More tokens in one pass gain nothing."""


@dataclass(frozen=True)
class Plan:
    """What fits into memory."""

    prompts: int
    """Prompts of one forward and backward pass."""
    checkpointing: bool
    """Keep only the layers' inputs, and compute activations again in the backward pass."""


@dataclass(frozen=True)
class Estimate:
    """Memory of one pass, in bytes."""

    tokens_per_prompt: int
    """A prompt with its image and all of its completions at full length."""
    kept_per_token: float
    """Activations that the backward pass needs."""
    checkpointed_per_token: float
    """The same with checkpointing."""
    free: float
    """What is free before training."""

    def needs(self, prompts: int, *, checkpointing: bool) -> float:
        """Bytes of a pass."""
        per_token = self.checkpointed_per_token if checkpointing else self.kept_per_token
        return prompts * self.tokens_per_prompt * per_token


def estimate(model: Any, config: GrpoConfig) -> Estimate:
    """Estimate what a pass through the language model needs.

    A layer keeps, per token, about nine times its width and three times its MLP's width (inputs of the adapted
    projections, norms, gathered keys and values, activations): on an H100, a model of 7B size with r 64 on all
    projections took 4.97 MB a token, of which this gives 4.99. Without :mod:`lewis_core.models.fusing`, adapters keep
    their inputs in their own precision too: twelve widths, and four and a half of the MLP. Checkpointing left 0.6 MB:
    three times the width a layer, and one layer in full.
    """
    text = backbone(model).config.get_text_config()
    vision = backbone(model).config.vision_config
    size = backbone(model).dtype.itemsize
    is_short = config.model.engine == "shared_prefix" and config.lora.dropout == 0 and size == 2  # half precision
    widths, of_mlp = (9.0, 3.0) if is_short else (12.0, 4.5)
    layer = (widths * text.hidden_size + of_mlp * text.intermediate_size) * size
    pixels = (vision.patch_size * vision.spatial_merge_size) ** 2
    visual = -(-config.model.max_pixels // pixels)
    return Estimate(
        tokens_per_prompt=visual + PROMPT_TEXT + config.num_generations * config.max_new_tokens,
        kept_per_token=text.num_hidden_layers * layer,
        checkpointed_per_token=text.num_hidden_layers * 3 * text.hidden_size * size + layer,
        free=free_bytes(backbone(model).device),
    )


def plan(found: Estimate, config: GrpoConfig, share: int) -> Plan:
    """Choose, where the settings leave a choice: as many prompts as fit, rather without checkpointing.

    Args:
        found: What a pass needs.
        config: ``micro_batch_prompts``, ``micro_batch_tokens`` and ``gradient_checkpointing``.
        share: Prompts of a step in this process; a pass takes a divisor of it.
    """
    if config.micro_batch_prompts is not None:
        sizes = [min(config.micro_batch_prompts, share)]
    else:
        tokens, divisors = config.micro_batch_tokens or MOST_TOKENS, range(share, 0, -1)
        sizes = [n for n in divisors if share % n == 0 and n * found.tokens_per_prompt <= tokens] or [1]
    wanted, budget = config.gradient_checkpointing, USED_SHARE * found.free
    for checkpointing in (False, True) if wanted == "auto" else (wanted,):
        fitting = [n for n in sizes if found.needs(n, checkpointing=checkpointing) <= budget]
        if fitting and (checkpointing or fitting[0] >= min(LEAST_PROMPTS, sizes[0])):
            return Plan(fitting[0], checkpointing)
    return Plan(sizes[-1], wanted is not False)


def agree(chosen: Plan, device: torch.device) -> Plan:
    """What all processes can do: they must split their work in the same way."""
    start: Any = PartialState
    if start(cpu=device.type == "cpu").num_processes == 1:
        return chosen
    plans: list[Plan] = gather_object([chosen])
    return Plan(min(p.prompts for p in plans), any(p.checkpointing for p in plans))


def report(found: Estimate, chosen: Plan) -> str:
    """Say what was estimated and chosen."""
    gib = 1 << 30
    without, with_it = (found.needs(chosen.prompts, checkpointing=on) / gib for on in (False, True))
    return (
        f"{chosen.prompts} prompts of up to {found.tokens_per_prompt} tokens a pass, checkpointing "
        f"{'on' if chosen.checkpointing else 'off'}: estimated activations are {without:.2f} GiB without it and "
        f"{with_it:.2f} GiB with it, "
        f"{found.free / gib:.1f} GiB free, of which {USED_SHARE:.0%} may be used"
    )
