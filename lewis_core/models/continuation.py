"""Run a prompt once, continue it many times.

Prompts fill a key-value cache, left-padded; the cache's rows are then repeated, once for each continuation. Text
goes on at the same position in every continuation, so the results equal those of separate sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lewis_core.models.features import ImageFeatures, backbone, encoder_outputs


@dataclass(frozen=True)
class Prompt:
    """Tokens of a prompt, and the features of the images in it."""

    ids: list[int]
    """A placeholder for each visual token."""
    images: tuple[ImageFeatures, ...] = ()
    """In order of appearance."""


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
            positions[:, row, start:], next_position = prompt_positions(model, prompt, image_token_id)
            following.append(next_position)
        self.mask = mask.to(self.device)  # (prompts, width)
        self.following = torch.tensor(following, device=self.device)  # (prompts,), position of the next text token
        self._cache: Any = DynamicCache(config=self._config)
        self.logits: Tensor = model(  # (prompts, vocabulary), after the last token
            input_ids=ids.to(self.device),
            attention_mask=None if bool(mask.all()) else self.mask,
            position_ids=positions.to(self.device),
            mm_encoder_outputs=encoder_outputs([image for prompt in prompts for image in prompt.images]),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer: (prompts, key-value heads, width, head dim)."""
        return [(layer.keys, layer.values) for layer in self._cache.layers]

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


def prompt_positions(model: Any, prompt: Prompt, image_token_id: int) -> tuple[Tensor, int]:
    """M-RoPE positions (3, tokens), and the position of the text token that follows.

    Text counts on in all three dimensions; an image begins where the text before it ends, counts rows in the second and
    columns in the third, and takes as many positions as its longer side has. Equal to transformers' ``get_rope_index``,
    which looks at every token: a test compares them.
    """
    merge = backbone(model).config.vision_config.spatial_merge_size if prompt.images else 1
    pieces: list[Any] = []
    at = following = 0
    for image in prompt.images:
        height, width = (int(side) // merge for side in image.grid[0, 1:])
        start = prompt.ids.index(image_token_id, at)
        pieces.append(_text_positions(following, start - at))
        following += start - at
        place = np.arange(height * width)
        pieces.append(np.stack([np.zeros_like(place), place // width, place % width]) + following)
        at, following = start + height * width, following + max(height, width)
    rest = len(prompt.ids) - at
    pieces.append(_text_positions(following, rest))
    return torch.from_numpy(np.concatenate(pieces, 1)), following + rest


def _text_positions(start: int, count: int) -> Any:
    return np.broadcast_to(np.arange(start, start + count), (3, count))
