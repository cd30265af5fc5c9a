"""Log-probabilities of many completions of one prompt, from one row: ``[prompt | completion 1 | … | completion G]``.

A token sees the prompt and its own completion, and text goes on at the same position in every completion, so values
and gradients equal those of separate sequences; the prompt is computed once instead of G times. The vision tower is
frozen and stays outside: a row holds an image's features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lewis_core.models.continuation import Prompt
from lewis_core.models.features import ImageFeatures, backbone, encoder_outputs

IGNORE = -100


@dataclass(frozen=True)
class Group:
    """A prompt and completions of it (token ids, at least one each)."""

    prompt: Prompt
    completions: Sequence[Tensor]


@dataclass(frozen=True)
class Packed:
    """Groups laid out in rows, one group a row, padded on the right."""

    input_ids: Tensor
    """(groups, length)"""
    position_ids: Tensor
    """(3, groups, length)"""
    labels: Tensor
    """(groups, length): the token expected *after* each position, -100 where none is."""
    mask: Tensor
    """(groups, 1, length, length): which token sees which."""
    images: tuple[ImageFeatures, ...]

    def forward_arguments(self, model: Any) -> dict[str, Any]:
        """Arguments of the model's forward; it must attend with ``sdpa`` or ``eager``."""
        text = backbone(model)
        mask = self.mask
        if text.language_model.config._attn_implementation == "eager":
            mask = torch.zeros_like(mask, dtype=text.dtype).masked_fill_(~mask, torch.finfo(text.dtype).min)
        arguments: dict[str, Any] = {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "attention_mask": mask,
        }
        if images := encoder_outputs(self.images):
            arguments["mm_encoder_outputs"] = images
        return arguments


@dataclass(frozen=True)
class _Row:
    """One group before padding; every tensor has one entry a token."""

    ids: Tensor
    positions: Tensor  # (3, tokens)
    labels: Tensor
    segment: Tensor  # 0 for the prompt, then the completion's number from 1


def pack(model: Any, groups: Sequence[Group], image_token_id: int, pad_id: int) -> Packed:
    """Lay groups out.

    Args:
        model: The model (or its PEFT wrapper) that will read them.
        groups: At least one.
        image_token_id: Token that stands for a visual token.
        pad_id: Token of padding.

    Returns:
        Rows on the model's device.
    """
    rows = [_lay_out(model, group, image_token_id) for group in groups]
    shape = len(rows), max(len(row.ids) for row in rows)
    input_ids, labels, segment = torch.full(shape, pad_id), torch.full(shape, IGNORE), torch.full(shape, -1)
    positions = torch.zeros((3, *shape), dtype=torch.long)
    for number, row in enumerate(rows):
        end = len(row.ids)
        input_ids[number, :end], labels[number, :end], segment[number, :end] = row.ids, row.labels, row.segment
        positions[:, number, :end] = row.positions
    device = backbone(model).device
    images = tuple(image for group in groups for image in group.prompt.images)
    return Packed(input_ids.to(device), positions.to(device), labels.to(device), _visible(segment.to(device)), images)


def _lay_out(model: Any, group: Group, image_token_id: int) -> _Row:
    """One row. Each completion repeats the prompt's last token, whose output predicts the completion's first."""
    prompt = torch.tensor(group.prompt.ids)
    positions = prompt_positions(model, group.prompt, image_token_id)
    kept, start = len(prompt) - 1, int(positions[0, -1])
    ids, places = [prompt[:kept]], [positions[:, :kept]]
    labels, segment = [torch.full((kept,), IGNORE)], [torch.zeros(kept, dtype=torch.long)]
    for number, completion in enumerate(group.completions, 1):
        ids.append(torch.cat([prompt[-1:], completion[:-1]]))
        places.append((start + torch.arange(len(completion))).expand(3, -1))
        labels.append(completion)
        segment.append(torch.full((len(completion),), number))
    return _Row(torch.cat(ids), torch.cat(places, 1), torch.cat(labels), torch.cat(segment))


def prompt_positions(model: Any, prompt: Prompt, image_token_id: int) -> Tensor:
    """M-RoPE positions of a prompt: (3, tokens)."""
    if not prompt.images:
        return torch.arange(len(prompt.ids)).expand(3, -1)
    ids = torch.tensor([prompt.ids])
    positions: Tensor = backbone(model).get_rope_index(
        ids,
        mm_token_type_ids=(ids == image_token_id).int(),
        image_grid_thw=torch.cat([image.grid for image in prompt.images]),
    )[0]
    return positions[:, 0]


def _visible(segment: Tensor) -> Tensor:
    """Which token sees which, from (groups, length) segment numbers; padding (-1) sees padding only."""
    order = torch.arange(segment.shape[1], device=segment.device)
    query, key = segment[:, :, None], segment[:, None, :]
    allowed = (query == key) | ((key == 0) & (query > 0))
    return (allowed & (order[:, None] >= order[None, :]))[:, None]
