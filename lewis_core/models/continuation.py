"""Run a prompt once, continue it many times.

Prompts fill a key-value cache, left-padded; the cache's rows are then repeated, once for each continuation. Text
goes on at the same position in every continuation, so the results equal those of separate sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lewis_core.models.features import ImageFeatures, backbone, encoder_outputs


@dataclass(frozen=True)
class Prompt:
    """Tokens of a prompt, and the features of the image in it."""

    ids: list[int]
    image: ImageFeatures | None = None


class Prefilled:
    """Prompts that a model has read.

    Args:
        model: The model.
        prompts: What it reads, in one batch.
        image_token_id: Token that stands for a visual token.
        pad_id: Token of padding.
    """

    def __init__(self, model: Any, prompts: Sequence[Prompt], image_token_id: int, pad_id: int) -> None:
        from transformers import DynamicCache

        self.model, self._config = model, backbone(model).config
        self.device: torch.device = backbone(model).device
        width = max(len(prompt.ids) for prompt in prompts)
        ids = torch.full((len(prompts), width), pad_id)
        mask = torch.zeros((len(prompts), width), dtype=torch.long)
        positions = torch.zeros((3, len(prompts), width), dtype=torch.long)
        following = []
        for row, prompt in enumerate(prompts):
            start = width - len(prompt.ids)
            ids[row, start:], mask[row, start:] = torch.tensor(prompt.ids), 1
            positions[:, row, start:], next_position = _positions(model, prompt, image_token_id)
            following.append(next_position)
        self.mask = mask.to(self.device)  # (prompts, width)
        self.following = torch.tensor(following, device=self.device)  # (prompts,), position of the next text token
        self._cache: Any = DynamicCache(config=self._config)
        self.logits: Tensor = model(  # (prompts, vocabulary), after the last token
            input_ids=ids.to(self.device),
            attention_mask=None if bool(mask.all()) else self.mask,
            position_ids=positions.to(self.device),
            mm_encoder_outputs=encoder_outputs([prompt.image for prompt in prompts if prompt.image]),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]

    def cache_of(self, rows: Tensor) -> Any:
        """Copy the cache of some prompts, in any order, with repetition."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self._config)
        for index, layer in enumerate(self._cache.layers):
            cache.update(layer.keys[rows], layer.values[rows], index)
        return cache


def last_logits(state: Prefilled, rows: Sequence[int], suffixes: Sequence[Sequence[int]]) -> Tensor:
    """Logits of the token after each continuation.

    Args:
        state: Prompts.
        rows: Which prompt each continuation belongs to.
        suffixes: Tokens of the continuations, at least one each.

    Returns:
        (continuations, vocabulary), in the model's precision.
    """
    device = state.device
    lengths = torch.tensor([len(suffix) for suffix in suffixes])
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(suffix) for suffix in suffixes], batch_first=True)
    steps = torch.arange(ids.shape[1])
    prompt = torch.tensor(rows, device=device)
    suffix_mask = (steps < lengths[:, None]).long().to(device)
    logits: Tensor = state.model(
        input_ids=ids.to(device),
        attention_mask=torch.cat([state.mask[prompt], suffix_mask], 1),
        position_ids=(state.following[prompt, None] + steps.to(device)).expand(3, -1, -1),
        past_key_values=state.cache_of(prompt),
        use_cache=True,
        logits_to_keep=(lengths - 1)[:, None].to(device),
    ).logits
    return logits[:, 0]


@dataclass(frozen=True)
class Sampling:
    """How one completion is drawn."""

    max_new_tokens: int
    temperature: float
    """0 is greedy."""
    seed: int
    """Of this completion alone, so that its text does not depend on what else is in the batch."""


def complete(
    state: Prefilled, rows: Sequence[int], sampling: Sequence[Sampling], eos_ids: Sequence[int], banned: Sequence[int]
) -> list[list[int]]:
    """Write completions.

    One uniform number per token decides a draw (the inverse of the cumulative distribution), taken from a generator
    of the completion's own.

    Args:
        state: Prompts.
        rows: Which prompt each completion belongs to.
        sampling: How each is drawn.
        eos_ids: Tokens that end a completion.
        banned: Tokens that are never written (image placeholders).

    Returns:
        Tokens of each completion, without the one that ends it.
    """
    prompt = torch.tensor(rows, device=state.device)
    draws = _draws(sampling).to(state.device)  # (completions, longest)
    temperatures = torch.tensor([s.temperature for s in sampling], device=state.device)
    limits = [s.max_new_tokens for s in sampling]
    cache, mask = state.cache_of(prompt), state.mask[prompt]
    positions, logits = state.following[prompt], state.logits[prompt]
    tokens: list[list[int]] = [[] for _ in rows]
    active = list(range(len(rows)))  # completion of each row of the cache; finished ones leave it
    for step in range(max(limits)):
        logits[:, list(banned)] = -torch.inf
        chosen = _choose(logits, temperatures[active], draws[active, step])
        kept = []
        for row, (index, token) in enumerate(zip(active, chosen.tolist(), strict=True)):
            if token in eos_ids:
                continue
            tokens[index].append(token)
            if len(tokens[index]) < limits[index]:
                kept.append(row)
        if not kept:
            break
        if len(kept) < len(active):
            keep = torch.tensor(kept, device=state.device)
            cache.batch_select_indices(keep)
            mask, positions, chosen = mask[keep], positions[keep], chosen[keep]
            active = [active[row] for row in kept]
        mask = torch.cat([mask, mask.new_ones((len(active), 1))], 1)
        logits = state.model(
            input_ids=chosen[:, None],
            attention_mask=mask,
            position_ids=(positions[:, None] + step).expand(3, -1, -1),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
    return tokens


def _draws(sampling: Sequence[Sampling]) -> Tensor:
    """Uniform numbers: (completions, longest), each row from its own seed."""
    draws = torch.zeros((len(sampling), max(s.max_new_tokens for s in sampling)), dtype=torch.float64)
    for row, settings in zip(draws, sampling, strict=True):
        if settings.temperature:
            generator = torch.Generator().manual_seed(settings.seed % 2**63)
            row[: settings.max_new_tokens] = torch.rand(
                settings.max_new_tokens, generator=generator, dtype=torch.float64
            )
    return draws


def _choose(logits: Tensor, temperatures: Tensor, draws: Tensor) -> Tensor:
    """Choose one token a row: the likeliest where the temperature is 0, else the one that the draw falls on."""
    greedy = logits.argmax(-1)
    if not bool((temperatures > 0).any()):
        return greedy
    warm = torch.where(temperatures > 0, temperatures, 1.0)
    cumulative = (logits.float() / warm[:, None]).softmax(-1).double().cumsum(-1)
    drawn = torch.searchsorted(cumulative, (draws * cumulative[:, -1])[:, None], right=True)[:, 0]
    return torch.where(temperatures > 0, drawn.clamp(max=logits.shape[-1] - 1), greedy)


def _positions(model: Any, prompt: Prompt, image_token_id: int) -> tuple[Tensor, int]:
    """M-RoPE positions (3, tokens), and the position of the text token that follows."""
    if prompt.image is None:
        return torch.arange(len(prompt.ids)).expand(3, -1), len(prompt.ids)
    ids = torch.tensor([prompt.ids])
    positions, deltas = backbone(model).get_rope_index(
        ids, mm_token_type_ids=(ids == image_token_id).int(), image_grid_thw=prompt.image.grid
    )
    return positions[:, 0], len(prompt.ids) + int(deltas[0])
