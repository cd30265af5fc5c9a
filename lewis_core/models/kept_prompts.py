"""Keys and values of photos, kept from one call to the next: a photo that comes again is not read again.

A listener's weights are frozen, and its photos come again with other questions. What a causal model computes for the
chat's opening, a photo and the beginning of a question depends on nothing that comes later, so a later prompt about the
same photo takes it over as far as both agree, and only the rest is computed. The photo itself is then neither decoded
nor sent through the vision tower.

Prompts are kept under what vision features are kept under, and dropped when the language model's weights or adapters
change. A prompt takes 2 × layers × key-value heads × head dim numbers a token: 56 KiB for a 7B Qwen2-VL in bfloat16.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lewis_core.listener.schemas import CacheStatistics
from lewis_core.models.caches import ByteCache
from lewis_core.models.digests import weight_stamps
from lewis_core.models.features import backbone, send
from lewis_core.models.packing import Beginning, Group, Packed


@dataclass(frozen=True)
class KeptPrompt:
    """A prompt about one image, as a model has read it."""

    through_image: int
    """Tokens up to the image's end: the same in all prompts about the image."""
    text: list[int]
    """Tokens behind it."""
    whole: Beginning
    """Keys and values of all."""

    @property
    def num_bytes(self) -> int:
        """Memory that keys and values take."""
        return self.whole.keys.numel() * self.whole.keys.element_size()

    def share(self, text: Sequence[int]) -> tuple[Beginning, list[int]]:
        """What another prompt about the image can take over.

        Args:
            text: Its tokens behind the image.

        Returns:
            What both begin with, and the other's tokens that are left.
        """
        same = common_length(self.text, text)
        keys = self.whole.keys[:, :, : self.through_image + same]
        return Beginning(keys, self.whole.following - len(self.text) + same), list(text[same:])


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


class KeptPrompts:
    """Least recently used prompts of a model, up to a number of bytes.

    Args:
        model: A Qwen-VL model of transformers, or its PEFT wrapper.
        image_token_id: Token that stands for a visual token.
        made_by: What a photo's tokens and features depend on besides the photo.
        max_bytes: Memory for keys and values; 0 keeps nothing.
    """

    def __init__(self, model: Any, image_token_id: int, made_by: Callable[[], str], max_bytes: int) -> None:
        self._text, self._image_token, self._made_by = backbone(model).language_model, image_token_id, made_by
        self._cache: ByteCache[KeptPrompt] = ByteCache(max_bytes)
        self._waiting: dict[str, KeptPrompt] = {}
        self._suffix = ""
        self._stamps: list[Any] = []

    def statistics(self) -> CacheStatistics | None:
        """How well they are reused; ``None`` if none are kept. May be called from any thread."""
        return self._cache.statistics() if self._cache.max_bytes else None

    def find(self, digests: Iterable[str]) -> frozenset[str]:
        """Which of some images there are prompts of; these wait to be taken, whatever makes room meanwhile.

        Args:
            digests: Of the images' content.
        """
        if not self._cache.max_bytes:
            return frozenset()
        stamps = [*weight_stamps(self._text), *_adapters(self._text)]
        if stamps != self._stamps:
            self.clear()
        self._stamps, self._suffix = stamps, self._made_by()
        found = {digest: self._cache.get(digest + self._suffix) for digest in digests}
        self._waiting = {digest: kept for digest, kept in found.items() if kept}
        return frozenset(self._waiting)

    def take(self, digest: str) -> KeptPrompt | None:
        """The prompt of an image that was found; ``None`` if memory ran out since."""
        return self._waiting.pop(digest, None)

    @contextmanager
    def recording(self, groups: Sequence[Group], packed: Packed) -> Iterator[None]:
        """Keep prompts that a model computes inside the block.

        Args:
            groups: What is in the row; of those with a name (``kept_as``) the prompts are kept.
            packed: The row.
        """
        wanted = self._wanted(groups)
        if not wanted:
            yield
            return
        spans = [packed.layout.spans[number] for number in wanted]
        places = [np.arange(span.start, span.suffix_start) for span in spans]
        recorder = packed.layout.record = _Recorder(places, len(self._text.layers), self._text.device)
        yield
        packed.layout.record = None
        for number, keys in zip(wanted, recorder.parts(), strict=True):
            kept = self._kept(groups[number].prompt.ids, Beginning(keys, packed.following[number]))
            self._cache.put(f"{groups[number].kept_as}{self._suffix}", kept)

    def clear(self) -> None:
        """Drop everything."""
        self._waiting = {}
        self._cache.clear()

    def drop(self) -> bool:
        """Make room when memory ran out, and keep half as much from now on; returns whether there was anything."""
        held = self._cache.num_bytes
        self.clear()
        if held:
            self._cache.max_bytes = held // 2
        return held > 0

    def __len__(self) -> int:
        return len(self._cache)

    def _wanted(self, groups: Sequence[Group]) -> list[int]:
        """Numbers of groups whose prompts are new and have room together."""
        text = self._text
        numbers = 2 * len(text.layers) * text.config.num_key_value_heads * text.layers[0].self_attn.head_dim
        room, wanted = self._cache.max_bytes // (numbers * text.dtype.itemsize), []
        for number, group in enumerate(groups):
            if group.kept_as is None or group.before or group.prompt_tokens > room:
                continue
            if f"{group.kept_as}{self._suffix}" not in self._cache:
                wanted.append(number)
                room -= group.prompt_tokens
        return wanted

    def _kept(self, ids: list[int], whole: Beginning) -> KeptPrompt:
        through_image = len(ids) - ids[::-1].index(self._image_token)
        return KeptPrompt(through_image, ids[through_image:], whole)


class _Recorder:
    """Copies keys and values of parts of a row, layer by layer.

    Args:
        places: Of each part's tokens in the row.
        layers: Layers of the model.
        device: Its device.
    """

    def __init__(self, places: Sequence[Any], layers: int, device: torch.device) -> None:
        self._sizes, self._layers = [len(of_part) for of_part in places], layers
        self._places = send(torch.from_numpy(np.concatenate(places)), device)
        self._found: Tensor | None = None

    def __call__(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Take what a layer has computed for the row: (tokens, key-value heads, head dim) each."""
        if self._found is None:
            self._found = key.new_empty((self._layers, 2, len(self._places), *key.shape[1:]))
        for part, x in enumerate((key, value)):
            torch.index_select(x, 0, self._places, out=self._found[layer, part])

    def parts(self) -> list[Tensor]:
        """Each part's own (layers, 2, tokens, key-value heads, head dim)."""
        if self._found is None:
            raise RuntimeError("no layer has computed the row by the attention shared_prefix")
        return [part.contiguous() for part in torch.split(self._found, self._sizes, 2)]


def _adapters(text: Any) -> list[Any]:
    """Which adapters a language model's layers use now, and how strongly."""
    return [
        (list(layer.active_adapters), layer.disable_adapters, list(layer.merged_adapters), dict(layer.scaling))
        for layer in text.modules()
        if hasattr(layer, "lora_A") and hasattr(layer, "merged_adapters")
    ]
