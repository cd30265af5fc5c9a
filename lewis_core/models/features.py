"""Vision features: computed once per image, kept as long as there is room."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import vision_utils
from transformers.utils.generic import get_max_seqlen

from lewis_core.data.images import MAX_ASPECT
from lewis_core.errors import ImageError, ModelError
from lewis_core.models.caches import ByteCache
from lewis_core.models.digests import WeightsDigest
from lewis_core.models.images import ImageSource
from lewis_core.prefetch import prefetch

logger = logging.getLogger(__name__)
MAX_PATCHES = 32_768
"""Patches of one pass through the vision tower (of several images together)."""
DECODED_AHEAD = 32
"""Images that are decoded before they are needed."""


@dataclass(frozen=True)
class ImageFeatures:
    """What the language model needs instead of an image's pixels."""

    tokens: Tensor
    """(visual tokens, hidden)"""
    grid: Tensor
    """(1, 3): frames, rows and columns of patches, on the CPU."""
    deepstack: tuple[Tensor, ...] = ()
    """Qwen3-VL: one (visual tokens, hidden) per injected layer."""

    @property
    def num_bytes(self) -> int:
        """Memory that the features take."""
        return sum(x.numel() * x.element_size() for x in (self.tokens, *self.deepstack))


class VisionEncoder:
    """Turns image references into features.

    Features are kept under the image's content, the processor's settings and the vision tower's weights: what changes
    any of them makes the old features unreachable.

    Args:
        model: A vision-language model of transformers (or its PEFT wrapper).
        image_processor: Its image processor.
        images: Where references lead.
        cache_bytes: Memory for features.
        num_workers: Threads that decode images.
    """

    def __init__(
        self, model: Any, image_processor: Any, images: ImageSource, cache_bytes: int, num_workers: int
    ) -> None:
        self._backbone, self._processor, self._images = backbone(model), image_processor, images
        self._max_patches, self._workers = MAX_PATCHES, num_workers
        self._weights = WeightsDigest(self._backbone.visual)
        self.cache: ByteCache[ImageFeatures] = ByteCache(cache_bytes)
        self.make_room: Callable[[], bool] = lambda: False
        """Asked when memory runs out, before fewer images are encoded at once; whether it made any."""

    def __call__(self, references: Mapping[str, str]) -> dict[str, ImageFeatures]:
        """Encode images that are not in the cache; look the others up.

        Args:
            references: Digest of each image, and where it is found.

        Returns:
            Features by digest.

        Raises:
            ImageError: If an image cannot be used.
        """
        return dict(self.stream(references))

    def stream(self, references: Mapping[str, str]) -> Iterator[tuple[str, ImageFeatures]]:
        """As a call, one image after the other, in order; later images are decoded meanwhile."""
        made_by = self.made_by()
        found = {digest: kept for digest in references if (kept := self.cache.get(digest + made_by))}
        lots = self._lots({digest: reference for digest, reference in references.items() if digest not in found})
        for digest in references:
            if digest not in found:
                digests, inputs = next(lots)
                found.update(zip(digests, self._encode(inputs), strict=True))
                for one in digests:
                    self.cache.put(one + made_by, found[one])
            yield digest, found.pop(digest)

    def made_by(self) -> str:
        """What features depend on besides the image: a part of the names under which they are kept."""
        settings = json.dumps(self._processor.to_dict(), sort_keys=True, default=str)
        return f" {hashlib.sha256(settings.encode()).hexdigest()} {self._weights.value()}"

    def _lots(self, references: Mapping[str, str]) -> Iterator[tuple[list[str], list[Any]]]:
        """Preprocess images, in lots that fit one pass through the vision tower."""
        digests: list[str] = []
        inputs: list[Any] = []
        decoded = prefetch(references.values(), self._preprocess, self._workers, DECODED_AHEAD)
        for digest, pixels in zip(references, decoded, strict=True):
            if digests and sum(len(x["pixel_values"]) for x in (*inputs, pixels)) > self._max_patches:
                yield digests, inputs
                digests, inputs = [], []
            digests.append(digest)
            inputs.append(pixels)
        if digests:
            yield digests, inputs

    def _preprocess(self, reference: str) -> Any:
        inputs = self._processor(images=[load_image(self._images, reference)], return_tensors="pt")
        inputs["pixel_values"] = _stage(inputs["pixel_values"], self._backbone.visual.dtype, self._backbone.device)
        return inputs

    def _encode(self, inputs: Sequence[Any]) -> list[ImageFeatures]:
        """Run the vision tower; over fewer images at once when memory runs out."""
        try:
            return self._run(inputs)
        except torch.OutOfMemoryError as error:
            has_room = self.make_room()
            if len(inputs) == 1 and not has_room:
                raise ModelError("one image alone does not fit into the GPU's memory") from error
        if has_room:
            return self._encode(inputs)
        self._max_patches = min(self._max_patches, sum(len(x["pixel_values"]) for x in inputs)) // 2
        logger.warning("out of memory: the vision tower goes on with %d patches a batch", self._max_patches)
        if self._backbone.device.type == "cuda":
            torch.cuda.empty_cache()
        half = len(inputs) // 2
        return [*self._encode(inputs[:half]), *self._encode(inputs[half:])]

    @torch.inference_mode()
    def _run(self, inputs: Sequence[Any]) -> list[ImageFeatures]:
        device = self._backbone.device
        pixels = torch.cat([send(x["pixel_values"], device) for x in inputs])
        grid = torch.cat([x["image_grid_thw"] for x in inputs])
        places = {
            name: send(x, device) if isinstance(x, Tensor) else x for name, x in _places(self._backbone.visual, grid)
        }
        out = self._backbone.get_image_features(pixels, grid, return_dict=True, **places)
        sizes = [len(tokens) for tokens in out.pooler_output]
        layers = [_split(layer, sizes) for layer in getattr(out, "deepstack_features", None) or ()]
        return [
            ImageFeatures(tokens.clone(), grid[i : i + 1], tuple(layer[i].clone() for layer in layers))
            for i, tokens in enumerate(out.pooler_output)
        ]


def load_image(images: ImageSource, reference: str) -> Image.Image:
    """Decode an image that a vision tower can take.

    Raises:
        ImageError: If it cannot be used, or is too long a strip.
    """
    image = images.load(reference)
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise ImageError(reference, f"{image.width} x {image.height} pixels: longer than {MAX_ASPECT} times its width")
    return image


def _places(vision: Any, grid: Tensor) -> Iterator[tuple[str, Any]]:
    """What a vision tower derives from grids, by the names under which it takes it ready.

    Made on the CPU: a GPU would have to end all that it was told to do before the tower learnt any of it.
    """
    config, merge = vision.config, vision.config.spatial_merge_size
    yield "position_ids", vision_utils.get_vision_position_ids(grid, merge)
    starts, longest = vision_utils.get_vision_attention_seqlens(grid, config)
    yield from (("cu_seqlens", starts), ("max_seqlen", longest))
    if hasattr(vision, "window_size"):  # Qwen2.5-VL
        order, starts = vision_utils.get_vision_window_index(grid, merge, vision.window_size, vision.patch_size)
        yield from (("window_index", order), ("cu_window_seqlens", starts))
        yield "max_window_seqlen", get_max_seqlen(starts, config)
    if hasattr(vision, "pos_embed"):  # Qwen3-VL
        taps, weights = vision_utils.get_vision_interpolation_indices_and_weights(
            grid, vision.num_grid_per_side, vision.interpolation_mode, vision.interpolation_align_corners, merge
        )
        yield from (("interp_indices", taps), ("interp_weights", weights))


def _stage(pixels: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Pixels in the tower's precision, where its device reads them without waiting."""
    if device.type != "cuda":
        return pixels.to(dtype)
    return torch.empty(pixels.shape, dtype=dtype, pin_memory=True).copy_(pixels)


def _split(layer: Any, sizes: Sequence[int]) -> Sequence[Tensor]:
    """One tensor per image, whether transformers has split the layer already or not."""
    return torch.split(layer, list(sizes)) if isinstance(layer, Tensor) else layer


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device, without waiting for what a GPU is doing."""
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def backbone(model: Any) -> Any:
    """The multimodal model without language head and PEFT wrapper."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    return model.base_model


def encoder_outputs(images: Sequence[ImageFeatures]) -> dict[str, Any] | None:
    """The ``mm_encoder_outputs`` argument of a model's forward, for images in order of appearance."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    tokens: Any = [image.tokens for image in images]  # transformers declares tensors and means lists, one per image
    if not images:
        return None
    if not images[0].deepstack:
        return {"image": BaseModelOutputWithPooling(pooler_output=tokens)}
    from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

    layers: Any = [list(layer) for layer in zip(*(image.deepstack for image in images), strict=True)]
    return {"image": BaseModelOutputWithDeepstackFeatures(pooler_output=tokens, deepstack_features=layers)}
