"""The CLIP model that finds look-alikes: images and texts → L2-normalised embeddings in one space.

:class:`ClipEncoder` loads any open_clip model: its own names, a hub id (``hf-hub:…``), a folder
(``local-dir:<folder>``) or the embedded one (``pocket:clip``). Folders hold safetensors weights; nothing else is read.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np
from PIL import Image

from lewis_core.config.base import Runtime
from lewis_core.config.data import EncoderConfig
from lewis_core.errors import ModelError
from lewis_core.models.files import encoder_folder
from lewis_core.retrieval.vectors import Matrix

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")
_OPEN_CLIP_PRECISION = {"float32": "fp32", "bfloat16": "bf16"}


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
        config: Which model, and its precision.
        runtime: Device, batch size, threads.

    Raises:
        ModelError: If the model is missing, unknown or damaged, or there is no GPU although one is asked for.
    """

    def __init__(self, config: EncoderConfig, runtime: Runtime) -> None:
        import torch

        from lewis_core.models.loading import resolve_device

        if runtime.torch_threads is not None:
            torch.set_num_threads(runtime.torch_threads)
        self._device = str(resolve_device(runtime))
        self._batch_size = runtime.batch_size
        self._dtype = getattr(torch, config.precision)
        self._model, self._preprocess, self._tokenizer = _load(config, self._device)

    def prepare_image(self, image: Image.Image) -> Any:
        """Resize, crop and scale to a tensor ``(3, H, W)``."""
        return self._preprocess(image)

    def encode_images(self, prepared: Iterable[Any]) -> Matrix:
        """Embed prepared images, batch by batch."""
        return self._encode(prepared, self._forward_images)

    def encode_texts(self, texts: Sequence[str]) -> Matrix:
        """Embed texts, batch by batch."""
        return self._encode(texts, self._forward_texts)

    def _forward_images(self, batch: Sequence[Any]) -> Any:
        import torch

        pixels = torch.stack(list(batch)).to(self._device, self._dtype)  # (B, 3, H, W)
        return self._model.encode_image(pixels)

    def _forward_texts(self, batch: Sequence[str]) -> Any:
        return self._model.encode_text(self._tokenizer(list(batch)).to(self._device))

    def _encode(self, items: Iterable[Item], forward: Callable[[Sequence[Item]], Any]) -> Matrix:
        """Run batches; those that do not fit into memory are halved."""
        rows: list[Matrix] = []
        for batch in iter_batches(items, self._batch_size):
            todo = [batch]
            while todo:
                part = todo.pop()
                result = self._try(part, forward)
                if result is None:
                    middle = len(part) // 2
                    todo += [part[middle:], part[:middle]]
                else:
                    rows.append(result)
        return np.concatenate(rows) if rows else np.zeros((0, 0), np.float32)

    def _try(self, batch: Sequence[Item], forward: Callable[[Sequence[Item]], Any]) -> Matrix | None:
        """Embed one batch; ``None`` when memory ran out and it can be halved."""
        import torch

        try:
            with torch.inference_mode():
                features = torch.nn.functional.normalize(forward(batch).float(), dim=-1)  # (B, D)
                result: Matrix = features.cpu().numpy()
                return result
        except torch.cuda.OutOfMemoryError as error:
            if len(batch) == 1:
                raise ModelError("the GPU's memory does not hold the encoder and one row") from error
            torch.cuda.empty_cache()
            logger.warning("out of GPU memory with %d rows; trying half", len(batch))
            return None


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


def prefetch(items: Iterable[Item], function: Callable[[Item], Result], workers: int, ahead: int) -> Iterator[Result]:
    """Apply a function in threads, in order, with at most ``ahead`` results waiting.

    Args:
        items: Arguments.
        function: Called in a thread; what it raises is raised here, at its turn.
        workers: Threads.
        ahead: Bound on results that are made but not yet taken, so that memory stays bounded.

    Yields:
        Results, in the order of the items.
    """
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
