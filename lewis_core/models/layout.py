"""Where prompts and suffixes lie in a packed row, in the forms that ways of attending to it want."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lewis_core.models.features import send


@dataclass(frozen=True)
class Span:
    """Where a prompt and its suffixes lie in the row, in this order, without gaps."""

    start: int
    prompt: int
    """Tokens of the prompt; may be 0."""
    suffixes: tuple[int, ...]
    """Tokens of each suffix, at least one."""
    kept: int = 0
    """Tokens that the prompt has before those in the row; their keys and values are kept."""

    @property
    def suffix_start(self) -> int:
        """Where the first suffix begins."""
        return self.start + self.prompt

    @property
    def end(self) -> int:
        """Where the next span begins."""
        return self.suffix_start + sum(self.suffixes)


class Layout:
    """Where everything lies in a packed row.

    Args:
        spans: Prompts with their suffixes, in order.
        device: Where index tensors are needed.
        kept: Keys and values that come before the spans which have some, in their order, each (layers, 2, tokens,
            key-value heads, head dim).
    """

    def __init__(self, spans: Sequence[Span], device: torch.device, kept: Sequence[Tensor] = ()) -> None:
        self.spans, self._kept, self._device = tuple(spans), tuple(kept), device
        self.record: Callable[[int, Tensor, Tensor], None] | None = None
        """Called with every layer's number, keys and values of the row (tokens, key-value heads, head dim)."""
        if device.type == "cuda":
            _ = self.varlen  # made while the GPU is busy with what came before

    @cached_property
    def varlen(self) -> "Varlen":
        """The layout as variable-length attention wants it: each prompt and each suffix is a sequence of queries."""
        queries, keys, places = [], [], []
        at = self.spans[-1].end
        for span in self.spans:
            prompt = np.concatenate([np.arange(at, at + span.kept), np.arange(span.start, span.suffix_start)])
            at += span.kept
            if span.prompt:
                queries.append(span.prompt)
                keys.append(len(prompt))
                places.append(prompt)
            starts = itertools.accumulate(span.suffixes, initial=span.suffix_start)
            for start, length in zip(starts, span.suffixes, strict=False):
                queries.append(length)
                keys.append(len(prompt) + length)
                places += [prompt, np.arange(start, start + length)]
        return Varlen(
            self._offsets(queries),
            self._offsets(keys),
            max(queries),
            max(keys),
            send(torch.from_numpy(np.concatenate(places)), self._device),
        )

    @cached_property
    def runs(self) -> "list[Run]":
        """Neighbours of the same shape, which are computed together."""
        runs = []
        for (kept, prompt, suffixes), spans in itertools.groupby(
            self.spans, lambda span: (span.kept, span.prompt, span.suffixes)
        ):
            lengths = torch.tensor(suffixes)
            steps = torch.arange(int(lengths.max()))
            starts = lengths.cumsum(0) - lengths
            index = torch.minimum(starts[:, None] + steps, (starts + lengths - 1)[:, None])
            used = steps < lengths[:, None]
            hidden = steps[:, None] < steps
            places = used.flatten().nonzero()[:, 0]
            tables = (x.to(self._device) for x in (index, used, places, hidden))
            runs.append(Run(len(list(spans)), kept, prompt, *tables))
        return runs

    def keys(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer: those of the row, and behind them those that are kept.

        Args:
            layer: Its number.
            key: (tokens, key-value heads, head dim).
            value: As ``key``.
        """
        if self.record is not None:
            self.record(layer, key, value)
        if not self._kept:
            return key, value
        keys, values = (torch.cat([x, *(one[layer, part] for one in self._kept)]) for part, x in ((0, key), (1, value)))
        return keys, values

    def _offsets(self, lengths: Sequence[int]) -> Tensor:
        return send(torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32), self._device)


@dataclass(frozen=True)
class Varlen:
    """Arguments of variable-length attention, in which a key may serve several sequences."""

    cu_queries: Tensor
    """(sequences + 1,): where each sequence's queries begin."""
    cu_keys: Tensor
    """(sequences + 1,): where its keys begin, among the gathered ones."""
    max_queries: int
    max_keys: int
    gather: Tensor
    """(gathered keys,): place of each in the row, or behind it among those that are kept."""


@dataclass(frozen=True)
class Run:
    """Spans of the same shape, one after the other; suffixes as a table, padded on the right to the longest."""

    spans: int
    kept: int
    """Tokens of each prompt before the row."""
    prompt: int
    """Tokens of each prompt in the row."""
    index: Tensor
    """(suffixes, width): place of each token behind the prompt; padding repeats a suffix's last token."""
    used: Tensor
    """(suffixes, width): whether it is a token."""
    places: Tensor
    """(tokens behind the prompt,): where each is in the table, row by row."""
    hidden: Tensor
    """(width, width): keys that come later."""

    @property
    def before(self) -> int:
        """Tokens that every suffix sees: the whole prompt."""
        return self.kept + self.prompt

    @cached_property
    def visible(self) -> Tensor:
        """(prompt, kept + prompt): keys of a prompt that do not come later."""
        return torch.ones(self.prompt, self.before, dtype=torch.bool, device=self.index.device).tril(self.kept)

    @property
    def tokens(self) -> int:
        """Tokens of each span in the row."""
        return self.prompt + int(self.index[-1, -1]) + 1
