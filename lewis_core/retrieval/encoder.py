"""The CLIP model that finds look-alikes: images and texts → L2-normalised embeddings in one space.

:class:`ClipEncoder` loads any open_clip model: its own names, a hub id (``hf-hub:…``), a folder
(``local-dir:<folder>``) or the embedded one (``pocket:clip``). Folders hold safetensors weights; nothing else is read.

Every batch of images has the same shape, the last one is filled up: what a picture's embedding is, to the last bit,
does not depend on the pictures that it is computed with. So embeddings may be kept, and computed in any order.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lewis_core.config.base import Runtime
from lewis_core.config.data import EncoderConfig
from lewis_core.errors import ModelError
from lewis_core.models.files import encoder_folder
from lewis_core.retrieval.pixels import Geometry, fit
from lewis_core.retrieval.vectors import Matrix

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
Batch = Sequence[Any] | NDArray[np.uint8]
Waiting = tuple[Callable[[], NDArray[Any]], int]
_OPEN_CLIP_PRECISION = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


class Encoder(Protocol):
    """Turns images and texts into vectors that can be compared by inner product."""

    def prepare_image(self, image: Image.Image) -> Any:
        """Turn an RGB image into the encoder's input; may be called from several threads."""

    def encode_images(self, prepared: Iterable[Any]) -> Matrix:
        """Embed what :meth:`prepare_image` made; shape ``(N, D)``, L2-normalised, in order."""

    def encode_texts(self, texts: Sequence[str]) -> Matrix:
        """Embed texts; shape ``(N, D)``, L2-normalised, in order. Longer ones are cut to the model's context."""


class ClipEncoder:
    """An open_clip model.

    Args:
        config: Which model, its precision and batches.
        runtime: Device, threads, and the batch size for texts.

    Raises:
        ModelError: If the model is missing, unknown or damaged, or there is no GPU although one is asked for.
    """

    def __init__(self, config: EncoderConfig, runtime: Runtime) -> None:
        import torch

        from lewis_core.models.loading import resolve_device
        from lewis_core.retrieval.transfer import Transfer

        if runtime.torch_threads is not None:
            torch.set_num_threads(runtime.torch_threads)
        self._device = str(resolve_device(runtime))
        self.batch_size, self._text_batch_size = config.batch_size, runtime.batch_size
        self._dtype = getattr(torch, config.precision)
        self._model, self._preprocess, self._tokenizer = _load(config, self._device)
        cfg = getattr(self._model.visual, "preprocess_cfg", None) or {}
        self.geometry = _find_geometry(cfg)
        """What it wants to see of a photo; ``None`` for models with a preprocessing of their own."""
        scale = [torch.tensor(cfg.get(name, (0.0,)), device=self._device) for name in ("mean", "std")]
        self._mean, self._std = (values.view(1, -1, 1, 1) for values in scale)
        self._transfer, self._is_crowded = Transfer(self._device), False

    @property
    def feeds_gpu(self) -> bool:
        """Whether it runs on a GPU."""
        return self._device != "cpu"

    def prepare_image(self, image: Image.Image) -> Any:
        """Resize and crop to pixels ``(H, W, 3)``, or, with a preprocessing of its own, to a tensor ``(3, H, W)``."""
        return self._preprocess(image) if self.geometry is None else fit(image, self.geometry)

    def encode_images(self, prepared: Iterable[Any]) -> Matrix:
        """Embed prepared images, batch by batch."""
        return join(self.encode_batches(iter_batches(prepared, self.batch_size)))

    def encode_batches(self, batches: Iterable[Batch]) -> Iterator[Matrix]:
        """Embed batches of prepared images; the GPU computes one while the next is fetched.

        Args:
            batches: At most ``batch_size`` images each.

        Yields:
            Embeddings of each batch ``(B, D)``, in order.
        """
        return self._encode(batches, self._forward_images)

    def encode_texts(self, texts: Sequence[str]) -> Matrix:
        """Embed texts, batch by batch."""
        return join(self._encode(iter_batches(texts, self._text_batch_size), self._forward_texts))

    def _forward_images(self, batch: Batch) -> Any:
        return self._model.encode_image(self._to_input(batch).to(self._dtype))

    def _to_input(self, batch: Batch) -> Any:
        """Scaled images ``(B, 3, H, W)`` on the device; a short batch is filled up with what is there.

        Once memory did not suffice for a whole batch, short ones are left as they are.
        """
        import torch

        rows = len(batch)
        if self.geometry is None:
            pixels = torch.stack(list(batch)).to(self._device)
        else:
            packed = batch if isinstance(batch, np.ndarray) else np.stack(list(batch))
            pixels = self._transfer.send(packed).permute(0, 3, 1, 2).float() / 255
            pixels = (pixels - self._mean) / self._std
        if rows < self.batch_size and not self._is_crowded:
            pixels = pixels[torch.arange(self.batch_size, device=self._device) % rows]
        return pixels.contiguous()

    def _forward_texts(self, batch: Batch) -> Any:
        return self._model.encode_text(self._tokenizer(list(batch)).to(self._device))

    def _encode(self, batches: Iterable[Batch], forward: Callable[[Batch], Any]) -> Iterator[Matrix]:
        """Run batches, one ahead of the one that is waited for."""
        ahead: list[Waiting] = []
        for batch in batches:
            parts = self._run(batch, forward)
            if ahead:
                yield _finish(ahead)
            ahead = parts
        if ahead:
            yield _finish(ahead)

    def _run(self, batch: Batch, forward: Callable[[Batch], Any]) -> list[Waiting]:
        """Start a batch, in halves if memory wants that; for each part what waits for it, and how many rows count."""
        import torch

        started, todo = list[Waiting](), [batch]
        while todo:
            part = todo.pop()
            try:
                with torch.inference_mode():
                    features = torch.nn.functional.normalize(forward(part).float(), dim=-1)  # (B, D)
                    started.append((self._transfer.fetch(features), len(part)))
            except torch.cuda.OutOfMemoryError as error:
                if len(part) == 1:
                    raise ModelError("the GPU's memory does not hold the encoder and one row") from error
                torch.cuda.empty_cache()
                self._is_crowded = True
                logger.warning("out of GPU memory with %d rows; trying half", len(part))
                todo += [part[len(part) // 2 :], part[: len(part) // 2]]
        return started


def _finish(parts: Sequence[Waiting]) -> Matrix:
    """Wait for embeddings; rows that only filled up a batch are left out."""
    return np.concatenate([wait()[:rows] for wait, rows in parts])


def join(matrices: Iterable[Matrix]) -> Matrix:
    """Put batches together; shape ``(0, 0)`` if there are none."""
    rows = list(matrices)
    return np.concatenate(rows) if rows else np.zeros((0, 0), np.float32)


def _find_geometry(cfg: dict[str, Any]) -> Geometry | None:
    """Geometry of open_clip's standard preprocessing; ``None`` for another one."""
    size = cfg.get("size")
    height, width = size if isinstance(size, tuple | list) else (size, size)
    resize, interpolation = cfg.get("resize_mode"), cfg.get("interpolation")
    if height is None or resize not in ("shortest", "squash") or interpolation not in ("bicubic", "bilinear"):
        return None
    if resize == "shortest" and height != width:
        return None
    return Geometry(int(height), int(width), resize, interpolation)


def _load(config: EncoderConfig, device: str) -> tuple[Any, Any, Any]:
    """Load model, preprocessing and tokenizer.

    Raises:
        ModelError: If that fails; open_clip raises whatever its dependencies raise.
    """
    import open_clip
    from safetensors import SafetensorError

    folder = encoder_folder(config)
    name = config.model if folder is None else f"local-dir:{folder}"
    pretrained = config.pretrained if folder is None else None
    if folder is None and pretrained is None and not name.startswith("hf-hub:"):
        raise ModelError(f"encoder {name!r} would have random weights; set encoder.pretrained (open_clip's tag)")
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(
            name, pretrained, precision=_OPEN_CLIP_PRECISION[config.precision], device=device, pretrained_hf=False
        )
        tokenizer = open_clip.get_tokenizer(name)
    except (
        RuntimeError, ValueError, OSError, KeyError, TypeError, AssertionError, ImportError, SafetensorError
    ) as error:  # fmt: skip
        raise ModelError(f"encoder {config.model!r} (pretrained {pretrained!r}) cannot be loaded: {error}") from error
    return model.eval().requires_grad_(False), preprocess, tokenizer


def iter_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Group items into lists of at most ``size``, in order."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
