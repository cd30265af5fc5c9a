"""Many continuations of many prompts in one row: ``[prompt | suffix 1 | … | suffix G | prompt | suffix 1 | …]``.

A suffix sees its prompt and itself, and goes on at the position where the prompt ends, so values and gradients equal
those of separate sequences; each prompt is computed once. The vision tower is frozen and stays outside: prompts hold
image features.

A prompt may begin with tokens that an earlier row has computed: their keys and values are kept
(:mod:`lewis_core.models.kept_prompts`), and the row has the rest.

A model attends to such a row by :mod:`lewis_core.models.attention`, or with a dense mask if it is set to transformers'
``sdpa`` or ``eager`` (its cost grows with the square of the row).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from lewis_core.models.attention import ATTENTION
from lewis_core.models.continuation import Prompt, prompt_positions
from lewis_core.models.features import ImageFeatures, backbone, encoder_outputs, send
from lewis_core.models.layout import Layout, Span

IGNORE = -100
"""Label of places where no token is expected."""


@dataclass(frozen=True)
class Beginning:
    """Tokens that come before a prompt's tokens in the row, as a model has read them."""

    keys: Tensor
    """(layers, 2, tokens, key-value heads, head dim): keys, and values."""
    following: int
    """Position of the text token that follows."""


@dataclass(frozen=True)
class Group:
    """A prompt and its suffixes. Make it with :meth:`of_questions` or :meth:`of_completions`."""

    prompt: Prompt
    suffixes: Sequence[Tensor]
    """What the model reads after the prompt: token ids (tokens,)."""
    labels: Sequence[Tensor] | None = None
    """The token expected after each token of the suffixes."""
    is_repeating: bool = False
    """Whether suffixes repeat the prompt's last token, which then is no part of the prompt."""
    before: Beginning | None = None
    """What the prompt begins with; ``prompt`` is what follows, without images."""
    kept_as: str | None = None
    """Name under which the prompt's keys and values may be kept."""

    def __post_init__(self) -> None:
        if not self.suffixes or not all(len(suffix) for suffix in self.suffixes):
            raise ValueError("a group needs at least one suffix, and each suffix at least one token")

    @classmethod
    def of_questions(
        cls,
        prompt: Prompt,
        questions: Sequence[Sequence[int]],
        *,
        before: Beginning | None = None,
        kept_as: str | None = None,
    ) -> Self:
        """For answers: what the model would say after each question (token ids, at least one each)."""
        suffixes = [torch.as_tensor(question, dtype=torch.long) for question in questions]
        return cls(prompt, suffixes, before=before, kept_as=kept_as)

    @classmethod
    def of_completions(cls, prompt: Prompt, completions: Sequence[Tensor]) -> Self:
        """For log-probabilities of completions (token ids, at least one each).

        Each suffix repeats the prompt's last token, whose output predicts the completion's first.
        """
        if not all(len(completion) for completion in completions):
            raise ValueError("a completion needs at least one token: leave empty ones out")
        last = torch.tensor(prompt.ids[-1:])
        return cls(prompt, [torch.cat([last, c[:-1].cpu()]) for c in completions], [c.cpu() for c in completions], True)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt in the row."""
        return len(self.prompt.ids) - self.is_repeating

    @property
    def kept_tokens(self) -> int:
        """Tokens of the prompt before the row."""
        return self.before.keys.shape[2] if self.before else 0

    @property
    def tokens(self) -> int:
        """Tokens of the row: what the group costs."""
        return self.prompt_tokens + sum(len(suffix) for suffix in self.suffixes)

    def split(self, max_tokens: int) -> "Iterator[Group]":
        """Cut into groups of at most ``max_tokens`` tokens, each with the prompt and at least one suffix."""
        start, total = 0, self.prompt_tokens
        for end, suffix in enumerate(self.suffixes):
            if end > start and total + len(suffix) > max_tokens:
                yield self._part(start, end)
                start, total = end, self.prompt_tokens
            total += len(suffix)
        yield self._part(start, len(self.suffixes))

    def _part(self, start: int, end: int) -> "Group":
        labels = None if self.labels is None else self.labels[start:end]
        return replace(self, suffixes=self.suffixes[start:end], labels=labels)


def batches(groups: Iterable[Group], max_tokens: int) -> Iterator[list[Group]]:
    """Cut work into rows of at most ``max_tokens`` tokens (more if one prompt with one suffix is longer).

    So many tokens may be kept beside a row, too: they cost no products, but memory.

    The suffixes of all batches, one after the other, are those of ``groups``.
    """
    batch: list[Group] = []
    total = kept = 0
    for group in groups:
        for part in group.split(max_tokens):
            if batch and max(total + part.tokens, kept + part.kept_tokens) > max_tokens:
                yield batch
                batch, total, kept = [], 0, 0
            batch.append(part)
            total, kept = total + part.tokens, kept + part.kept_tokens
    if batch:
        yield batch


@dataclass(frozen=True)
class Packed:
    """Groups in one row, on the model's device."""

    input_ids: Tensor
    """(1, tokens)"""
    position_ids: Tensor
    """(3, 1, tokens)"""
    labels: Tensor
    """(1, tokens): the token expected *after* each place, -100 where none is."""
    last: Tensor
    """(suffixes,): place of the last token of each."""
    segments: Tensor
    """(2, tokens): number of the group, and 0 for its prompt or the number of the suffix from 1."""
    following: tuple[int, ...]
    """Position of the text token that follows each prompt."""
    layout: Layout
    images: tuple[ImageFeatures, ...]

    def forward_arguments(self, model: Any) -> dict[str, Any]:
        """Arguments of the model's forward, but for what is wanted of it (``logits_to_keep``, ``shift_labels``, …)."""
        text = backbone(model).language_model
        arguments: dict[str, Any] = {"input_ids": self.input_ids, "position_ids": self.position_ids, "use_cache": False}
        if images := encoder_outputs(self.images):
            arguments["mm_encoder_outputs"] = images
        if text.config._attn_implementation == ATTENTION:
            return arguments | {"shared_prefix": self.layout}
        mask = self.mask()
        if text.config._attn_implementation == "eager":
            mask = torch.zeros_like(mask, dtype=text.dtype).masked_fill_(~mask, torch.finfo(text.dtype).min)
        return arguments | {"attention_mask": mask}

    def mask(self) -> Tensor:
        """Which token sees which: (1, 1, tokens, tokens).

        Raises:
            ValueError: If prompts begin before the row.
        """
        if any(span.kept for span in self.layout.spans):
            raise ValueError("a dense mask has no place for kept keys: set the model's attention to shared_prefix")
        group, suffix = self.segments
        place = torch.arange(len(group), device=group.device)
        visible = (group[:, None] == group) & ((suffix == 0) | (suffix[:, None] == suffix))
        mask: Tensor = (visible & (place[:, None] >= place))[None, None]
        return mask


def pack(model: Any, groups: Sequence[Group], image_token_id: int) -> Packed:
    """Lay groups out in one row.

    Args:
        model: The model (or its PEFT wrapper) that will read it.
        groups: At least one.
        image_token_id: Token that stands for a visual token.
    """
    ids, positions, labels, suffix_of, group_of, spans, followings = [], [], [], [], [], [], []
    at = 0
    for number, group in enumerate(groups):
        of_prompt, following = prompt_positions(model, group.prompt, image_token_id)
        if group.before:
            of_prompt, following = of_prompt + group.before.following, following + group.before.following
        span = Span(at, group.prompt_tokens, tuple(len(suffix) for suffix in group.suffixes), group.kept_tokens)
        start = following - group.is_repeating
        ids += [np.asarray(group.prompt.ids[: span.prompt], dtype=np.int64), *(x.numpy() for x in group.suffixes)]
        positions.append(of_prompt.numpy()[:, : span.prompt])
        positions += [np.broadcast_to(np.arange(start, start + size), (3, size)) for size in span.suffixes]
        labels.append(np.full(span.prompt, IGNORE))
        labels += [x.numpy() for x in group.labels or ()] or [np.full(sum(span.suffixes), IGNORE)]
        suffix_of.append(np.repeat(np.arange(1 + len(span.suffixes)), [span.prompt, *span.suffixes]))
        group_of.append(np.full(span.end - at, number))
        spans.append(span)
        followings.append(following)
        at = span.end
    device = backbone(model).device
    segments = np.stack([np.concatenate(group_of), np.concatenate(suffix_of)])
    is_end = np.append((segments[:, 1:] != segments[:, :-1]).any(0), True)

    def there(parts: Any) -> Tensor:
        return send(torch.from_numpy(parts), device)

    return Packed(
        input_ids=there(np.concatenate(ids)[None]),
        position_ids=there(np.concatenate(positions, 1)[:, None]),
        labels=there(np.concatenate(labels)[None]),
        last=there(np.flatnonzero(is_end & (segments[1] > 0))),  # places: a mask would make the GPU's host wait
        segments=there(segments),
        following=tuple(followings),
        layout=Layout(spans, device, [group.before.keys for group in groups if group.before]),
        images=tuple(image for group in groups for image in group.prompt.images),
    )


def last_logits(model: Any, packed: Packed) -> Tensor:
    """Logits of the token after each suffix: (suffixes, vocabulary), in the model's precision."""
    logits: Tensor = model(**packed.forward_arguments(model), logits_to_keep=packed.last).logits
    return logits.flatten(0, -2)
