"""The plain engine: one ordinary forward pass, or one ordinary generation, for each text, with its image.

Nothing is shared, packed or kept. It is slow, it runs whatever transformers loads as an image-text-to-text model, and
it is what the fast engine is tested against.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lewis_core.errors import ModelError
from lewis_core.listener.schemas import CacheStatistics
from lewis_core.models.engine import Frame, Read, Text, banned_ids, eos_ids
from lewis_core.models.features import load_image
from lewis_core.models.images import ImageSource
from lewis_core.models.sampling import Sampling


class PlainEngine:
    """An :class:`~lewis_core.models.engine.Engine` that uses nothing but transformers' documented calls.

    Args:
        model: An image-text-to-text model of transformers, or its PEFT wrapper, in evaluation mode.
        processor: Its processor.
        images: Where image references lead.
        frames: The chat around a prompt's text, with and without an image.
    """

    def __init__(self, model: Any, processor: Any, images: ImageSource, frames: dict[bool, Frame]) -> None:
        self._model, self._processor, self._images, self._frames = model, processor, images, frames
        self._eos, self._banned = eos_ids(model, processor.tokenizer), banned_ids(model)

    def vision_cache(self) -> CacheStatistics | None:
        """Nothing is kept."""
        return None

    def prompt_cache(self) -> CacheStatistics | None:
        """Nothing is kept."""
        return None

    @torch.inference_mode()
    def answer(self, texts: Sequence[Text], read: Read) -> None:
        """Hand the logits after each text over. See :meth:`lewis_core.models.engine.Engine.answer`."""
        for place, text in enumerate(texts):
            try:
                read([place], self._model(**self._inputs(text), use_cache=False, logits_to_keep=1).logits[:, -1])
            except torch.OutOfMemoryError as error:
                raise ModelError("one image with one question does not fit into the GPU's memory") from error

    @torch.inference_mode()
    def write(self, texts: Sequence[Text], text_of_row: Sequence[int], sampling: Sequence[Sampling]) -> list[list[int]]:
        """Continue texts. See :meth:`lewis_core.models.engine.Engine.write`."""
        return [self._continue(texts[number], one) for number, one in zip(text_of_row, sampling, strict=True)]

    def _continue(self, text: Text, sampling: Sampling) -> list[int]:
        from transformers import GenerationConfig

        configure: Any = GenerationConfig
        settings = configure(
            do_sample=False,  # the draw is ours, so that a completion depends on its seed alone
            repetition_penalty=1.0,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=self._eos,
            pad_token_id=self._processor.tokenizer.pad_token_id,
        )
        inputs = self._inputs(text)
        try:
            out = self._model.generate(
                **inputs, generation_config=settings, logits_processor=[_Draw(sampling, self._banned)]
            )
        except torch.OutOfMemoryError as error:
            raise ModelError("one prompt with one completion does not fit into the GPU's memory") from error
        ids: list[int] = out[0, inputs["input_ids"].shape[1] :].tolist()
        return ids[:-1] if ids[-1] in self._eos else ids

    def _inputs(self, text: Text) -> dict[str, Any]:
        """What the processor makes of the image and the chat's opening, with the text's tokens behind it.

        Only the opening goes through the processor: special tokens that are spelled out in the text stay text.
        """
        before, tokenizer = self._frames[text.image is not None].before, self._processor.tokenizer
        images = [load_image(self._images, text.image)] if text.image is not None else None
        has_bos = bool(tokenizer.bos_token and before.startswith(tokenizer.bos_token))
        inputs = self._processor(text=[before], images=images, return_tensors="pt", add_special_tokens=not has_bos)
        opening = inputs["input_ids"].shape[1]
        for name, value in inputs.items():
            if name == "input_ids":
                inputs[name] = torch.cat([value, torch.tensor([text.ids])], 1)
            elif value.shape == (1, opening):  # the attention mask, and the types of tokens (0: text)
                more = value.new_full((1, len(text.ids)), int(name == "attention_mask"))
                inputs[name] = torch.cat([value, more], 1)
        moved: dict[str, Any] = dict(inputs.to(self._model.device, dtype=self._model.dtype))  # integers keep their type
        return moved


class _Draw:
    """A logits processor that leaves one token: the likeliest, or the one that a uniform number falls on."""

    def __init__(self, sampling: Sampling, banned: Sequence[int]) -> None:
        generator = torch.Generator().manual_seed(sampling.seed % 2**63)
        self._draws = torch.rand(sampling.max_new_tokens, generator=generator, dtype=torch.float64).tolist()
        self._temperature, self._banned, self._step = sampling.temperature, list(banned), 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Choose the next token of a single row; ``scores`` is (1, vocabulary)."""
        logits = scores[0].to(torch.promote_types(scores.dtype, torch.float32))
        logits[self._banned] = -torch.inf
        token = int(logits.argmax())
        if self._temperature:
            cumulative = (logits / self._temperature).softmax(-1).double().cumsum(-1)
            draw = self._draws[self._step] * cumulative[-1]
            token = min(int(torch.searchsorted(cumulative, draw, right=True)), len(logits) - 1)
        self._step += 1
        chosen = torch.full_like(scores, -torch.inf)
        chosen[0, token] = 0.0
        return chosen
