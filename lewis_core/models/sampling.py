"""Write completions: every prompt is read once, and all completions of all prompts grow together.

A completion depends on its prompt and its own seed: one uniform number per token decides a draw (the inverse of the
cumulative distribution), taken from a generator of the completion's own.
"""

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lewis_core.models.continuation import Prefilled, Prompt
from lewis_core.models.decoding import ALIGNMENT, ATTENTION, Shape, Table, arrange
from lewis_core.models.features import backbone
from lewis_core.models.merging import WritingWeights

logger = logging.getLogger(__name__)
PREFILL_TOKENS = 16_384
"""Prompt tokens that are read in one forward pass."""
CHECK_EVERY = 16
"""Steps between looks at which rows have ended, where looking stops the GPU."""
AHEAD = 2
"""Steps that a GPU has left to do when it is looked which rows have ended, so that it does not wait meanwhile."""
SHRINK_TO = 0.75
"""Rows move to a smaller table when it has at most this share of the places."""
KEPT_TABLES = 6
"""Tables, with their CUDA graphs, that are kept for later calls."""


@dataclass(frozen=True)
class Sampling:
    """How one completion is drawn."""

    max_new_tokens: int
    temperature: float
    """0 is greedy."""
    seed: int
    """Of this completion alone, so that its text does not depend on what else is in the batch."""


@dataclass(frozen=True)
class Written:
    """One completion."""

    ids: list[int]
    """Its tokens, without the one that ends it."""
    end: int | None
    """The token that ends it; ``None`` if it was cut off."""
    logps: list[float]
    """Log-probability of each token, ``end`` included, at the temperature of the draw (greedy: at 1)."""


Finished = Callable[[int, dict[int, Written]], None]


class Sampler:
    """Writes completions of a model's prompts. Keep the instance: on a GPU it keeps its storage and CUDA graphs.

    Args:
        model: A Qwen-VL model of transformers, or its PEFT wrapper.
        image_token_id: Token that stands for a visual token.
        pad_id: Token of padding.
        eos_ids: Tokens that end a completion.
        banned: Tokens that are never written (image placeholders).
        fixed_shapes: Decode with storage of fixed sizes, as CUDA graphs need; ``None``: on a GPU only.
    """

    def __init__(
        self,
        model: Any,
        *,
        image_token_id: int,
        pad_id: int,
        eos_ids: Sequence[int],
        banned: Sequence[int],
        fixed_shapes: bool | None = None,
    ) -> None:
        self._model, self._image_token, self._pad = model, image_token_id, pad_id
        self._eos, self._banned = frozenset(eos_ids), tuple(banned)
        self._fixed: bool = backbone(model).device.type == "cuda" if fixed_shapes is None else fixed_shapes
        self._weights = WritingWeights(model)
        self._state = self._weights.state
        self._tables: OrderedDict[Shape, Table] = OrderedDict()

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Prompt],
        prompt_of_row: Sequence[int],
        sampling: Sequence[Sampling],
        finished: Finished | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> list[Written]:
        """Write completions.

        Args:
            prompts: What is continued.
            prompt_of_row: Which of them each completion belongs to.
            sampling: How each completion is drawn.
            finished: Called with a prompt's number and its completions (by row), as soon as all of them are written.
            check: Called now and then; what it raises ends the writing.

        Returns:
            Completions, in order of rows.
        """
        found: dict[int, Written] = {}
        if not prompt_of_row:
            return []
        with _evaluating(self._model), self._weights.active():
            if self._weights.state != self._state:
                self.clear()  # graphs of other adapters, or of weights that have moved
            self._state = self._weights.state
            for prompt, rows in self._run(prompts, prompt_of_row, sampling, check):
                found.update(rows)
                if finished is not None:
                    finished(prompt, rows)
        return [found[row] for row in range(len(prompt_of_row))]

    def clear(self) -> None:
        """Give the storage back."""
        self._tables.clear()

    def _run(
        self,
        prompts: Sequence[Prompt],
        prompt_of_row: Sequence[int],
        sampling: Sequence[Sampling],
        check: Callable[[], None],
    ) -> Iterator[tuple[int, dict[int, Written]]]:
        """Yield each prompt with its completions, in the order in which they are finished."""
        numbers, rows = arrange(prompt_of_row)
        expected = Counter(prompt_of_row)
        written: dict[int, dict[int, Written]] = {number: {} for number in numbers}
        table = self._begin([prompts[number] for number in numbers], rows, sampling)
        with _decoding(self._model):
            look = table.look()
            while True:
                check()
                done = look().view(table.shape.prompts, -1)[: len(rows), : rows.shape[1]]
                places = (done & (rows >= 0)).nonzero().tolist()
                ended = self._read(table, [index * table.shape.slots + slot for index, slot in places])
                for (index, slot), one in zip(places, ended, strict=True):
                    number, row = numbers[index], int(rows[index, slot])
                    written[number][row] = one
                    rows[index, slot] = -1
                    if len(written[number]) == expected[number]:
                        yield number, written[number]
                if not bool((rows >= 0).any()):
                    return
                table, numbers, rows = self._shrink(table, numbers, rows)
                look = self._steps(table)

    def _steps(self, table: Table) -> Callable[[], Tensor]:
        """Write some tokens in every row; returns how to learn which rows had ended shortly before the last of them."""
        left = table.longest - table.steps
        count = min(CHECK_EVERY if self._fixed else 1, left)
        ahead = AHEAD if self._fixed and count < left else 0
        for _ in range(count - ahead):
            table.step()
        look = table.look()
        for _ in range(ahead):
            table.step()
        return look

    def _begin(self, prompts: Sequence[Prompt], rows: Tensor, sampling: Sequence[Sampling]) -> Table:
        """Read prompts, in as few forward passes as memory allows, and write the first token of each row."""
        parts = _parts([len(prompt.ids) for prompt in prompts])
        states = [Prefilled(self._model, prompts[part], self._image_token, self._pad) for part in parts]
        limits = torch.tensor([settings.max_new_tokens for settings in sampling])
        length = max(state.mask.shape[1] for state in states)
        table = self._table(rows.shape[0], rows.shape[1], length, int(limits.max()))
        warmth = torch.tensor([settings.temperature for settings in sampling])
        table.begin(states, rows, limits, warmth, _draws(sampling))
        return table

    def _table(self, prompts: int, slots: int, prompt_length: int, new_length: int) -> Table:
        shape = Shape(prompts, slots, prompt_length, new_length, fixed=False)
        if not self._fixed:
            return Table(self._model, shape, self._eos, self._banned)
        shape = Shape(_power(prompts), _power(slots), _aligned(prompt_length), _aligned(new_length), fixed=True)
        table = self._tables.pop(shape, None) or Table(self._model, shape, self._eos, self._banned)
        self._tables[shape] = table
        while len(self._tables) > KEPT_TABLES:
            self._tables.popitem(last=False)
        return table

    def _shrink(self, table: Table, numbers: list[int], rows: Tensor) -> tuple[Table, list[int], Tensor]:
        """Move what has not ended to a smaller table, if it is enough smaller."""
        alive = [(index, (of_prompt >= 0).nonzero()[:, 0].tolist()) for index, of_prompt in enumerate(rows)]
        alive = [(index, slots) for index, slots in alive if slots]
        prompts, width = len(alive), max(len(slots) for _, slots in alive)
        places = _power(prompts) * _power(width) if self._fixed else prompts * width
        if places > SHRINK_TO * table.shape.rows:
            return table, numbers, rows
        smaller = self._table(prompts, width, table.shape.prompt_length, table.shape.new_length)
        kept, source = torch.full((prompts, width), -1), torch.full((prompts, width), -1)
        for place, (index, slots) in enumerate(alive):
            kept[place, : len(slots)] = rows[index, slots]
            source[place, : len(slots)] = index * table.shape.slots + torch.tensor(slots)
        smaller.continue_from(table, [index for index, _ in alive], source)
        return smaller, [numbers[index] for index, _ in alive], kept

    def _read(self, table: Table, places: Sequence[int]) -> list[Written]:
        """Fetch rows that have ended, all in one go."""
        if not places:
            return []
        ids, logps, lengths = (x[list(places)].tolist() for x in (table.tokens, table.logps, table.lengths))
        found = []
        for row, logp, length in zip(ids, logps, lengths, strict=True):
            end = row[length - 1] if row[length - 1] in self._eos else None
            found.append(Written(row[: length if end is None else length - 1], end, logp[:length]))
        return found


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Neither dropout nor checkpointing; afterwards each module is again in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            vars(module)["training"] = False  # thousands of modules: an ordinary assignment looks for parameters first
        yield
    finally:
        for module in training:
            vars(module)["training"] = True


@contextmanager
def _decoding(model: Any) -> Iterator[None]:
    """Let the language model attend as tables do."""
    text = backbone(model).language_model
    before = text.config._attn_implementation
    text.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        text.set_attn_implementation(before)


def _parts(lengths: Sequence[int]) -> list[slice]:
    """Cut a list of prompts into runs of at most ``PREFILL_TOKENS`` tokens, padding included."""
    parts, start, widest = [], 0, 0
    for index, length in enumerate(lengths):
        widest = max(widest, length)
        if index > start and widest * (index + 1 - start) > PREFILL_TOKENS:
            parts.append(slice(start, index))
            start, widest = index, length
    return [*parts, slice(start, len(lengths))]


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


def _power(number: int) -> int:
    """The least power of two that is not smaller."""
    return 1 << (number - 1).bit_length()


def _aligned(length: int) -> int:
    return -(-length // ALIGNMENT) * ALIGNMENT
