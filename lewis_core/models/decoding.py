"""Decoding in lockstep: many rows write one token each, and rows of one prompt read its keys and values once.

Rows form a table, (prompts, slots). A prompt's keys and values are stored once; a row has storage of its own for what
it has written. A row's attention is one softmax over both parts, so it equals attention over its whole sequence.

All state that a step reads or moves lies in tensors of fixed shape, so a step can be a CUDA graph.
"""

import itertools
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lewis_core.models.continuation import Prefilled
from lewis_core.models.features import backbone
from lewis_core.models.fusing import has_kernels, is_power_of_two

ATTENTION = "shared_prefix_decoding"
ALIGNMENT = 64
"""Lengths of fixed storage are multiples of this, so that few sizes occur."""
MOST_TOGETHER = 1024
"""Tokens of a vocabulary whose probabilities are summed up before a draw looks at single ones."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a table's storage."""

    prompts: int
    slots: int
    prompt_length: int
    new_length: int
    fixed: bool
    """Read all storage at every step, masked, instead of the part that is filled: for CUDA graphs."""

    @property
    def rows(self) -> int:
        """Rows, empty ones included."""
        return self.prompts * self.slots


@dataclass
class _Layer:
    prompt_keys: Tensor  # (prompts, key-value heads, prompt length, head dim)
    prompt_values: Tensor
    keys: Tensor  # (prompts, key-value heads, slots, new length, head dim)
    values: Tensor


class Table:
    """Rows that decode together.

    Args:
        model: The model, or its PEFT wrapper, in evaluation mode.
        shape: Sizes.
        eos_ids: Tokens that end a completion.
        banned: Tokens that are never written.
    """

    def __init__(self, model: Any, shape: Shape, eos_ids: Collection[int], banned: Sequence[int]) -> None:
        text = backbone(model).config.get_text_config()
        device, dtype = backbone(model).device, backbone(model).dtype
        heads = text.num_key_value_heads
        size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        self._model, self.shape = model, shape
        self._has_kernel = shape.fixed and is_power_of_two(size) and has_kernels(backbone(model).language_model)
        prompt = (shape.prompts, heads, shape.prompt_length, size)
        new = (shape.prompts, heads, shape.slots, shape.new_length, size)
        self._layers = [
            _Layer(*(torch.zeros(sizes, device=device, dtype=dtype) for sizes in (prompt, prompt, new, new)))
            for _ in range(text.num_hidden_layers)
        ]
        self._least = torch.finfo(dtype).min
        hidden = {"fill_value": self._least, "device": device, "dtype": dtype}
        self._prompt_mask = torch.full((shape.prompts, 1, 1, shape.prompt_length), **hidden)
        self._new_mask = torch.full((shape.new_length,), **hidden)
        rows, whole = shape.rows, {"device": device, "dtype": torch.long}
        self._eos = torch.tensor(sorted(eos_ids), **whole)
        self._token, self._position, self._limit = (torch.zeros(rows, **whole) for _ in range(3))
        self._at = torch.zeros(1, **whole)  # place of the token that is written last
        self._warmth = torch.zeros(rows, device=device)
        self._draws = torch.zeros((rows, shape.new_length), device=device, dtype=torch.float64)
        self.tokens = torch.zeros((rows, shape.new_length), **whole)
        """(rows, new length)"""
        self._precision = torch.promote_types(dtype, torch.float32)
        self.logps = torch.zeros((rows, shape.new_length), device=device, dtype=self._precision)
        """(rows, new length): log-probabilities of the tokens at the row's temperature (greedy rows: at 1)."""
        self.lengths = torch.zeros(rows, **whole)
        """Tokens that each row has written, with the one that ends it."""
        self.done = torch.ones(rows, device=device, dtype=torch.bool)
        """Rows that have ended, or are empty."""
        self.steps = 0
        """Tokens that a row has written which has not ended."""
        self.longest = 0
        """Most tokens of any row: after as many steps all have ended."""
        self._hidden = torch.zeros(text.vocab_size, device=device, dtype=torch.bool)
        self._banned = torch.tensor(sorted(banned), **whole)
        self._hidden[self._banned] = True
        self._warm = False
        self._visible = 0
        self._graphs: dict[tuple[int, bool], Any] = {}

    # Filling ---------------------------------------------------------------------------------------------------

    def begin(self, states: Sequence[Prefilled], rows: Tensor, limits: Tensor, warmth: Tensor, draws: Tensor) -> None:
        """Take prompts in, and write the first token of each row.

        Args:
            states: Prompts that were read, in order.
            rows: (prompts, slots): the completion in each slot, -1 where none is.
            limits: (completions,): most tokens of each.
            warmth: (completions,): temperature of each, 0 for greedy.
            draws: (completions, tokens): uniform numbers.
        """
        first = 0
        self._prompt_mask.fill_(self._least)
        logits, following = [], []
        for state in states:
            count, width = state.mask.shape
            for layer, (keys, values) in zip(self._layers, state.layers(), strict=True):
                layer.prompt_keys[first : first + count, :, :width] = keys
                layer.prompt_values[first : first + count, :, :width] = values
            part = self._prompt_mask[first : first + count, 0, 0, :width]
            part.masked_fill_(state.mask.bool(), 0.0)
            logits.append(state.logits)
            following.append(state.following)
            first += count
        slots = torch.full((self.shape.prompts, self.shape.slots), -1)
        slots[: len(rows), : rows.shape[1]] = rows
        where = torch.arange(self.shape.prompts).repeat_interleave(self.shape.slots).clamp(max=first - 1)
        self._take_rows(slots.flatten(), limits, warmth, draws)
        self._position.copy_(torch.cat(following)[where.to(self._position.device)] - 1)
        self._new_mask.fill_(self._least)
        self.steps = 0
        self._at.fill_(-1)
        self._choose(torch.cat(logits)[where.to(self._position.device)])
        self.steps = 1

    def _take_rows(self, slots: Tensor, limits: Tensor, warmth: Tensor, draws: Tensor) -> None:
        device, used = self._token.device, slots >= 0
        index = slots.clamp(min=0)
        self._limit.copy_(limits[index].to(device))
        self.longest = int((limits[index] * used).max())
        self._warmth.copy_((warmth[index] * used).to(device))
        self._draws[:, : draws.shape[1]] = draws[index].to(device)
        self._warm = bool((warmth[index] * used > 0).any())
        self.done.copy_(~used.to(device))
        self.lengths.zero_()

    def continue_from(self, other: "Table", prompts: Sequence[int], rows: Tensor) -> None:
        """Go on with some rows of another table, after the same number of steps.

        Args:
            other: The table that they are in.
            prompts: Its prompts that are kept.
            rows: (prompts kept, slots): its row in each slot, -1 where none is.
        """
        device, kept = self._token.device, torch.tensor(list(prompts))
        slots = torch.full((self.shape.prompts, self.shape.slots), -1)
        slots[: len(rows), : rows.shape[1]] = rows
        index, used = slots.flatten().clamp(min=0).to(device), (slots.flatten() >= 0).to(device)
        count, length = len(kept), other._layers[0].prompt_keys.shape[2]
        place, filled = kept.to(device), min(other.steps, self.shape.new_length)
        self._prompt_mask.fill_(self._least)
        self._prompt_mask[:count, ..., :length] = other._prompt_mask[place]
        for mine, theirs in zip(self._layers, other._layers, strict=True):
            mine.prompt_keys[:count, :, :length] = theirs.prompt_keys[place]
            mine.prompt_values[:count, :, :length] = theirs.prompt_values[place]
            for to, source in ((mine.keys, theirs.keys), (mine.values, theirs.values)):
                of_rows = source[..., :filled, :].transpose(1, 2).flatten(0, 1)[index]  # (rows, heads, filled, dim)
                to[..., :filled, :] = of_rows.view(self.shape.prompts, -1, *of_rows.shape[1:]).transpose(1, 2)
        for name in ("_token", "_position", "_limit", "_warmth", "_draws", "tokens", "logps", "lengths"):
            getattr(self, name).copy_(getattr(other, name)[index])
        self.done.copy_(other.done[index] | ~used)
        self._new_mask.copy_(other._new_mask)
        self._at.copy_(other._at)
        self.steps, self.longest, self._warm = other.steps, other.longest, other._warm

    # Decoding --------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Write one more token in every row that has not ended."""
        if not self.shape.fixed:
            self._visible = self.steps
            self._decode()
        else:
            self._visible = min(-(-self.steps // ALIGNMENT) * ALIGNMENT, self.shape.new_length)
            if self._has_kernel:  # which looks itself how far a row has come: one graph for all steps
                self._visible = self.shape.new_length
            if self._token.is_cuda:
                graph = self._graphs.get((self._visible, self._warm)) or self._capture()
                self._graphs[self._visible, self._warm] = graph
                graph.replay()
            else:
                self._decode()
        self.steps += 1

    def look(self) -> Callable[[], Tensor]:
        """Ask which rows have ended by now; more steps may follow before the answer is fetched, which waits for it."""
        if not self.done.is_cuda:
            found = self.done.clone()
            return lambda: found
        copy = torch.empty(self.done.shape, dtype=torch.bool, pin_memory=True)
        copy.copy_(self.done, non_blocking=True)
        cuda: Any = torch.cuda
        event = cuda.Event()
        event.record()

        def wait() -> Tensor:
            event.synchronize()
            return copy

        return wait

    def _decode(self) -> None:
        self._new_mask.index_fill_(0, self._at, 0.0)
        logits = self._model(
            input_ids=self._token[:, None],
            position_ids=self._position[None, :, None].expand(3, -1, -1),
            attention_mask=self._new_mask[None, None, None, :1],  # four dimensions: transformers makes no mask
            use_cache=False,
            logits_to_keep=1,
            decoding=self,
        ).logits[:, -1]
        self._choose(logits)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attention of each row's newest token.

        Args:
            layer: Number of the layer.
            query: (rows, heads, 1, head dim).
            key: (rows, key-value heads, 1, head dim), of the newest token.
            value: As ``key``.
            scaling: Factor of the products.

        Returns:
            (rows, 1, heads, head dim)
        """
        store, (prompts, slots, visible) = self._layers[layer], (self.shape.prompts, self.shape.slots, self._visible)
        (rows, heads, _, size), groups = query.shape, key.shape[1]
        if self._has_kernel:
            from lewis_core.models.kernels import decode

            shared, own = (store.prompt_keys, store.prompt_values), (store.keys, store.values)
            q, k, v = (x[:, :, 0] for x in (query, key, value))
            return decode(q, k, v, shared, own, self._prompt_mask[:, 0, 0], self._at, scaling)[:, None]
        for to, new in ((store.keys, key), (store.values, value)):
            to.index_copy_(3, self._at, new.view(prompts, slots, groups, 1, size).transpose(1, 2))
        folded = (query * scaling).view(prompts, slots, groups, -1, size).transpose(1, 2)  # (.., slots, repeats, size)
        flat = folded.flatten(2, 3)  # (prompts, groups, slots x repeats, size)
        of_prompt = flat @ store.prompt_keys.transpose(2, 3) + self._prompt_mask
        of_new = (folded @ store.keys[:, :, :, :visible].transpose(3, 4)).flatten(2, 3)
        if self.shape.fixed:
            of_new = of_new + self._new_mask[:visible]
        weights = torch.cat([of_prompt, of_new], -1).softmax(-1, dtype=self._precision).to(flat.dtype)
        for_prompt, for_new = torch.split(weights, [of_prompt.shape[-1], visible], -1)
        out: Tensor = (for_prompt @ store.prompt_values).view_as(folded)
        out = out + for_new.view(*folded.shape[:-1], visible) @ store.values[:, :, :, :visible]
        return out.transpose(1, 2).reshape(rows, 1, heads, size)

    def _choose(self, logits: Tensor) -> None:
        """Choose a token a row: the likeliest where the temperature is 0, else the one that the draw falls on."""
        self._at += 1
        if self._has_kernel:
            from lewis_core.models import drawing_kernels

            rows = drawing_kernels.Rows(
                self._warmth, self._draws, self._limit,
                self.tokens, self.logps, self.lengths, self.done, self._token, self._position,
            )  # fmt: skip
            drawing_kernels.choose(logits, self._hidden, self._eos, self._at, rows, draws=self._warm)
            return
        divisor = torch.where(self._warmth > 0, self._warmth, 1.0)[:, None]
        scaled = (logits / divisor.to(self._precision)).index_fill_(1, self._banned, -torch.inf)
        probabilities = scaled.softmax(-1)
        token = scaled.argmax(-1)
        if self._warm:
            drawn = draw(probabilities, self._draws.index_select(1, self._at))
            token = torch.where(self._warmth > 0, drawn, token)
        token = token.masked_fill(self.done, 0)
        logp = probabilities.gather(1, token[:, None]).log()
        self.tokens.index_copy_(1, self._at, token[:, None])
        self.logps.index_copy_(1, self._at, logp)
        self.lengths += ~self.done
        self.done |= torch.isin(token, self._eos) | (self.lengths >= self._limit)
        self._token.copy_(token)
        self._position += 1

    def _capture(self) -> Any:
        """Record a step as a CUDA graph, then put back what the recording moved."""
        names = ("_token", "_position", "_at", "_new_mask", "tokens", "logps", "lengths", "done")
        saved = {name: getattr(self, name).clone() for name in names}
        cuda: Any = torch.cuda
        stream, current = cuda.Stream(), cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._decode()
                self._restore(saved)
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._decode()
        self._restore(saved)
        return graph

    def _restore(self, saved: dict[str, Tensor]) -> None:
        for name, value in saved.items():
            getattr(self, name).copy_(value)


def draw(probabilities: Tensor, chance: Tensor) -> Tensor:
    """Choose the token at which the sum of probabilities exceeds a chance: (rows,).

    Sums of neighbours come first, then the tokens among the neighbours chosen: a running sum over a whole vocabulary
    would keep a GPU waiting.

    Args:
        probabilities: (rows, vocabulary), not negative; each row has a positive one.
        chance: (rows, 1): uniform in [0, 1), float64.
    """
    rows, vocabulary = probabilities.shape
    together = math.gcd(vocabulary, MOST_TOGETHER)
    if together * together < vocabulary // 64:  # an odd size: too many neighbourhoods
        together = MOST_TOGETHER
        probabilities = F.pad(probabilities, (0, -vocabulary % together))
    parts = probabilities.view(rows, -1, together)
    sums = parts.sum(-1, dtype=torch.float64)
    until = sums.cumsum(-1)
    part = _passed(until, chance)
    before = (until - sums).gather(1, part)
    inside = parts.gather(1, part[..., None].expand(-1, -1, together))[:, 0].double().cumsum(-1)
    rest = (chance * until[:, -1:] - before) / inside[:, -1:]  # rounding may leave it outside of [0, 1)
    return (part * together + _passed(inside, rest.clamp(0.0, 1.0)))[:, 0]


def _passed(until: Tensor, chance: Tensor) -> Tensor:
    """First place at which running sums exceed a share of the whole; its own summand is positive: (rows, 1)."""
    whole = until[:, -1:]
    return torch.searchsorted(until, torch.minimum(chance * whole, torch.nextafter(whole, -whole)), right=True)


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    decoding: Table | None = None,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """Attention in the form that transformers calls; without a table it is transformers' ``sdpa``."""
    if decoding is None:
        sdpa: Callable[..., tuple[Tensor, None]] = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return sdpa(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **arguments)
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    return decoding.attend(module.layer_idx, query, key, value, factor), None


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def arrange(prompt_of_row: Sequence[int]) -> tuple[list[int], Tensor]:
    """Put rows into a table.

    Args:
        prompt_of_row: Prompt of each row.

    Returns:
        Prompts that have rows, in order, and (prompts, slots): the rows of each, -1 where none is.

    >>> arrange([4, 4, 2])
    ([2, 4], tensor([[ 2, -1],
            [ 0,  1]]))
    """
    by_prompt = sorted(zip(prompt_of_row, itertools.count(), strict=False))
    groups = {prompt: [row for _, row in rows] for prompt, rows in itertools.groupby(by_prompt, lambda pair: pair[0])}
    width = max(map(len, groups.values()))
    return list(groups), torch.tensor([rows + [-1] * (width - len(rows)) for rows in groups.values()])
