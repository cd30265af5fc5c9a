"""The fast engine: an image, and what its questions have in common, is read once, however many texts continue it.

Answers come from packed rows (:mod:`lewis_core.models.packing`), or from a key-value cache whose rows are repeated
(:mod:`lewis_core.models.continuation`); both are exact. A GPU takes packed rows, which need no padding and no copies.
A CPU takes the cache, which is a little faster there, unless keys and values of photos are kept from call to call
(:mod:`lewis_core.models.kept_prompts`): rows can begin with those. Completions come from
:mod:`lewis_core.models.sampling`.
"""

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lewis_core.errors import ModelError
from lewis_core.listener.schemas import CacheStatistics
from lewis_core.models import packing
from lewis_core.models.attention import ATTENTION
from lewis_core.models.continuation import Prefilled, Prompt, last_logits
from lewis_core.models.engine import Frame, Read, Text, banned_ids, eos_ids
from lewis_core.models.features import ImageFeatures, VisionEncoder, backbone
from lewis_core.models.images import ImageSource
from lewis_core.models.kept_prompts import KeptPrompts, common_length
from lewis_core.models.packing import Group, batches
from lewis_core.models.sampling import Sampler, Sampling

logger = logging.getLogger(__name__)
PACKED_TOKENS = 16_384
"""Tokens of one forward pass on a GPU."""
CACHED_TOKENS = 8_192
"""The same on a CPU."""


@dataclass(frozen=True)
class EngineOptions:
    """How the engine uses memory."""

    batch_size: int = 64
    """Completions that are written together; halved, for good, when memory runs out."""
    batch_tokens: int | None = None
    """Tokens of one forward pass that answers, each prompt counted once; halved, for good, when memory runs out."""
    packed: bool | None = None
    """Answer from packed rows rather than from a repeated cache; ``None``: on a GPU, and where prompts are kept, unless
    the model's attention needs dense masks."""
    num_workers: int = 2
    """Threads that decode images."""
    cache_bytes: int = 2 << 30
    """Memory for vision features."""
    prompt_bytes: int = 0
    """Memory for keys and values of photos, which packed rows can begin with; 0 keeps none."""


class SharedPrefixEngine:
    """An :class:`~lewis_core.models.engine.Engine` that computes shared prompts once.

    Args:
        model: A Qwen-VL model of transformers, or its PEFT wrapper, in evaluation mode.
        processor: Its processor.
        images: Where image references lead.
        frames: The chat around a prompt's text, with and without an image.
        options: How it uses memory.
    """

    def __init__(
        self, model: Any, processor: Any, images: ImageSource, frames: dict[bool, Frame], options: EngineOptions
    ) -> None:
        self._model, self._frames, self._batch_size = model, frames, options.batch_size
        is_gpu = model.device.type == "cuda"
        has_kernel = backbone(model).language_model.config._attn_implementation == ATTENTION
        wants_rows = is_gpu or options.prompt_bytes > 0
        self._packed = (wants_rows and has_kernel) if options.packed is None else options.packed
        self._batch_tokens = options.batch_tokens or (PACKED_TOKENS if is_gpu else CACHED_TOKENS)
        self._encoder = VisionEncoder(
            model, processor.image_processor, images, options.cache_bytes, options.num_workers
        )
        self._merge: int = processor.image_processor.merge_size**2
        self._image_token: int = model.config.image_token_id
        self._pad: int = processor.tokenizer.pad_token_id
        prompt_bytes = options.prompt_bytes if self._packed and has_kernel else 0
        self._kept = KeptPrompts(model, self._image_token, self._encoder.made_by, prompt_bytes)
        self._encoder.make_room = self._make_room
        self._sampler = Sampler(
            model,
            image_token_id=self._image_token,
            pad_id=self._pad,
            eos_ids=eos_ids(model, processor.tokenizer),
            banned=banned_ids(model),
        )

    def vision_cache(self) -> CacheStatistics | None:
        """How well vision features are reused; may be called from any thread."""
        return self._encoder.cache.statistics()

    def prompt_cache(self) -> CacheStatistics | None:
        """How well keys and values of photos are reused; may be called from any thread."""
        return self._kept.statistics()

    # Answers -----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def answer(self, texts: Sequence[Text], read: Read) -> None:
        """Hand the logits after each text over. See :meth:`lewis_core.models.engine.Engine.answer`."""
        places_by_image: dict[str | None, list[int]] = {}
        for place, text in enumerate(texts):
            places_by_image.setdefault(text.digest, []).append(place)
        places = itertools.chain.from_iterable(places_by_image.values())
        for batch in batches(self._groups(texts, places_by_image), self._batch_tokens):
            self._answer_batch(batch, list(itertools.islice(places, _suffixes(batch))), read)

    def _groups(self, texts: Sequence[Text], places_by_image: dict[str | None, list[int]]) -> Iterator[Group]:
        """Each image with all its texts; images whose prompts are not kept are decoded ahead."""
        images = {digest: texts[places[0]].image for digest, places in places_by_image.items()}
        references = {digest: image for digest, image in images.items() if digest and image}
        known = self._kept.find(references)
        features = self._encoder.stream({digest: image for digest, image in references.items() if digest not in known})
        for digest, places in places_by_image.items():
            common, rest = _split([texts[place].ids for place in places])
            if digest and (kept := self._kept.take(digest)):
                before, left = kept.share(self._behind_image() + common)
                yield Group.of_questions(Prompt(left), rest, before=before)
                continue
            image = None
            if digest in known:  # and dropped since, as memory ran out
                image = self._encoder({digest: references[digest]})[digest]
            elif digest:
                image = next(features)[1]
            yield Group.of_questions(self._prompt(common, image), rest, kept_as=digest)

    def _behind_image(self) -> list[int]:
        """Tokens of the chat's opening behind the image."""
        opening = self._frames[True].opening
        return opening[opening.index(self._image_token) + 1 :]

    def _answer_batch(self, batch: Sequence[Group], places: Sequence[int], read: Read) -> None:
        waiting, done = [batch], 0
        while waiting:
            batch = waiting.pop()
            parts = list(batches(batch, self._batch_tokens))
            if len(parts) > 1:  # memory ran out meanwhile
                waiting += reversed(parts)
                continue
            count = _suffixes(batch)
            if self._fits(batch, places[done : done + count], read):
                done += count
            else:
                waiting.append(batch)

    def _fits(self, batch: Sequence[Group], places: Sequence[int], read: Read) -> bool:
        """Answer a batch; if memory runs out, drop prompts that are kept, or make later batches smaller."""
        forward = self._read_packed if self._packed else self._read_cached
        try:
            forward(batch, places, read)
            return True
        except torch.OutOfMemoryError as error:
            if len(places) == 1 and not len(self._kept):
                raise ModelError("one image with one question alone does not fit into the GPU's memory") from error
        if not self._make_room():
            self._batch_tokens = min(self._batch_tokens, _size(batch)) // 2
            logger.warning("out of memory: answers go on with %d tokens a batch", self._batch_tokens)
            self._free()
        return False

    def _read_packed(self, batch: Sequence[Group], places: Sequence[int], read: Read) -> None:
        packed = packing.pack(self._model, batch, self._image_token)
        with self._kept.recording(batch, packed):
            logits = packing.last_logits(self._model, packed)
        read(places, logits)

    def _read_cached(self, batch: Sequence[Group], places: Sequence[int], read: Read) -> None:
        state = Prefilled(self._model, [group.prompt for group in batch], self._image_token, self._pad)
        rows = [
            (number, suffix.tolist(), place)
            for (number, suffix), place in zip(
                ((number, suffix) for number, group in enumerate(batch) for suffix in group.suffixes),
                places,
                strict=True,
            )
        ]
        rows.sort(key=lambda row: len(row[1]))  # less padding
        width = state.mask.shape[1] + len(rows[-1][1])
        size = max(1, self._batch_tokens // (2 * width))  # every row has the prompt's keys: more are no faster
        for start in range(0, len(rows), size):
            numbers, suffixes, of_rows = zip(*rows[start : start + size], strict=True)
            read(of_rows, last_logits(state, numbers, suffixes))

    # Completions -------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def write(self, texts: Sequence[Text], text_of_row: Sequence[int], sampling: Sequence[Sampling]) -> list[list[int]]:
        """Continue texts. See :meth:`lewis_core.models.engine.Engine.write`."""
        written: dict[int, list[int]] = {}
        work = sorted(
            range(len(text_of_row)),
            key=lambda row: (sampling[row].max_new_tokens, len(texts[text_of_row[row]].ids), text_of_row[row]),
        )
        while len(written) < len(work):
            batch = work[len(written) : len(written) + self._batch_size]
            try:
                written.update(self._write_batch(texts, text_of_row, sampling, batch))
                continue
            except torch.OutOfMemoryError as error:
                if self._batch_size == 1 and not len(self._kept):
                    raise ModelError("one prompt alone does not fit into the GPU's memory") from error
            if not self._make_room():
                self._batch_size = min(self._batch_size, len(batch)) // 2
                logger.warning("out of memory: going on with %d completions a batch", self._batch_size)
                self._free()
        return [written[row] for row in range(len(work))]

    def _write_batch(
        self, texts: Sequence[Text], text_of_row: Sequence[int], sampling: Sequence[Sampling], batch: Sequence[int]
    ) -> dict[int, list[int]]:
        numbers = list(dict.fromkeys(text_of_row[row] for row in batch))
        wanted = [texts[number] for number in numbers]
        features = self._encoder({text.digest: text.image for text in wanted if text.digest and text.image})
        prompts = [self._prompt(text.ids, features[text.digest] if text.digest else None) for text in wanted]
        place = {number: index for index, number in enumerate(numbers)}
        found = self._sampler.sample(
            prompts, [place[text_of_row[row]] for row in batch], [sampling[row] for row in batch]
        )
        return {row: one.ids for row, one in zip(batch, found, strict=True)}

    def _prompt(self, ids: list[int], image: ImageFeatures | None) -> Prompt:
        """Put the chat's opening, with room for the image, in front of tokens."""
        opening = self._frames[image is not None].opening
        if image is None:
            return Prompt(opening + ids)
        at = opening.index(self._image_token)
        visual = [self._image_token] * (int(image.grid.prod()) // self._merge)
        return Prompt(opening[:at] + visual + opening[at + 1 :] + ids, (image,))

    def _make_room(self) -> bool:
        """Drop keys and values of photos when memory ran out; returns whether there were any."""
        if not self._kept.drop():
            return False
        logger.warning("out of memory: keys and values of photos were dropped; half as much is kept from now on")
        self._free()
        return True

    def _free(self) -> None:
        self._sampler.clear()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()


def _suffixes(groups: Sequence[Group]) -> int:
    return sum(len(group.suffixes) for group in groups)


def _size(groups: Sequence[Group]) -> int:
    """Tokens by which a batch is limited: those of its row, or those that are kept beside it."""
    return max(sum(group.tokens for group in groups), sum(group.kept_tokens for group in groups))


def _split(rows: Sequence[list[int]]) -> tuple[list[int], list[list[int]]]:
    """Tokens that all rows begin with, and what is left of each (at least one token)."""
    common = common_length(min(rows), max(rows))  # what these two share, all share
    common = min(common, min(map(len, rows)) - 1)
    return rows[0][:common], [row[common:] for row in rows]
