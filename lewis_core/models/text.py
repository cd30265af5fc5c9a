"""Causal language models: load one, let it write, and read its probabilities of answers. Text only.

They judge and refine descriptions. The calls are those of :class:`~lewis_core.models.protocol.AnsweringModel` that
need no image, so a vision-language model can take the place of a language model. Only transformers' documented calls
are used: any architecture of ``AutoModelForCausalLM`` works. Weights are safetensors only, and no code from a
checkpoint is ever run.
"""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError

from lewis_core.config.base import ModelRef, Runtime
from lewis_core.errors import ModelError
from lewis_core.listener.schemas import ChoiceAnswer, ChoiceItem, GenerateItem
from lewis_core.listener.scoring import captured_mass
from lewis_core.models.answers import answer_token_ids
from lewis_core.models.files import resolve_model_path
from lewis_core.models.loading import resolve_device, resolve_dtype

_LOADING_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, SafetensorError)
_MARK = "\ue000text\ue001"


class TextModel(Protocol):
    """A model that answers and writes without an image."""

    def choose(self, items: Sequence[ChoiceItem]) -> list[list[ChoiceAnswer]]:
        """Answer multiple-choice questions."""

    def generate(self, items: Sequence[GenerateItem]) -> list[list[str]]:
        """Continue prompts; completions without prompt and special tokens."""


class CausalLanguageModel:
    """A :class:`TextModel` in this process.

    Args:
        model: A causal language model of transformers, in evaluation mode.
        tokenizer: Its tokenizer, with a chat template; where the template knows it, thinking is turned off.
        batch_size: Rows of one forward pass; halved and repeated when a GPU's memory runs out.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int = 64) -> None:
        self._model, self._tokenizer, self._batch_size = model, tokenizer, batch_size
        self._before, self._after = _chat_frame(tokenizer)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._pad = 0 if pad is None else int(pad)

    def choose(self, items: Sequence[ChoiceItem]) -> list[list[ChoiceAnswer]]:
        """Answer multiple-choice questions by the probabilities of the token that comes next.

        Raises:
            ModelError: If an item has an image, two choices begin with the same token, or a question does not fit
                into memory.
        """
        questions = [question for item in items for question in item.questions]
        _refuse_images(item.image for item in items)
        ids = {choices: answer_token_ids(self._tokenizer, choices) for choices in {q.choices for q in questions}}
        logits = self._batched([self._encode(question.prompt) for question in questions], self._next_logits)
        answers = []
        for question, row in zip(questions, logits, strict=True):
            log_probs = row.log_softmax(-1)
            chosen = tuple(float(log_probs[tokens].logsumexp(0)) for tokens in ids[question.choices])
            answers.append(ChoiceAnswer(log_probs=chosen, captured_mass=captured_mass(chosen)))
        ordered = iter(answers)
        return [[next(ordered) for _ in item.questions] for item in items]

    def generate(self, items: Sequence[GenerateItem]) -> list[list[str]]:
        """Continue prompts. Greedy ones run in batches; sampled ones alone, each from its own seed.

        The checkpoint's own sampling defaults (top-k, top-p, repetition penalty) are not applied.

        Raises:
            ModelError: If an item has an image or does not fit into memory.
        """
        _refuse_images(item.image for item in items)
        written: list[list[str]] = [[] for _ in items]
        greedy: dict[int, list[int]] = {}
        for place, item in enumerate(items):
            if item.temperature == 0:
                greedy.setdefault(item.max_new_tokens, []).append(place)
            else:
                written[place] = [self._sample(item, number) for number in range(item.num_return)]
        for limit, places in greedy.items():
            encoded = [self._encode(items[place].prompt) for place in places]
            texts = self._batched(encoded, lambda rows, limit=limit: self._write(rows, limit))
            for place, text in zip(places, texts, strict=True):
                written[place] = [text] * items[place].num_return
        return written

    def _encode(self, prompt: str) -> list[int]:
        """Token ids of a chat with one prompt; special tokens that are spelled out in it stay text."""
        ids: list[int] = self._tokenizer(prompt, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [*self._before, *ids, *self._after]

    def _batched(self, rows: Sequence[list[int]], compute: Any) -> list[Any]:
        """Compute in batches, which become smaller while they do not fit into a GPU's memory."""
        done: list[Any] = []
        while len(done) < len(rows):
            try:
                done += compute(rows[len(done) : len(done) + self._batch_size])
            except torch.OutOfMemoryError as error:
                if self._batch_size == 1:
                    raise ModelError("one prompt does not fit into the GPU's memory") from error
                self._batch_size //= 2
                torch.cuda.empty_cache()
        return done

    def _inputs(self, rows: Sequence[list[int]]) -> dict[str, torch.Tensor]:
        """Ids and mask of left-padded rows, each of shape (rows, longest)."""
        longest = max(map(len, rows))
        ids = torch.tensor([[self._pad] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        device = self._model.device
        return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}

    @torch.inference_mode()
    def _next_logits(self, rows: Sequence[list[int]]) -> list[torch.Tensor]:
        """Logits of the token after each row, in float32 on the CPU."""
        inputs = self._inputs(rows)
        positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        logits = self._model(**inputs, position_ids=positions, use_cache=False, logits_to_keep=1).logits[:, -1]
        return list(logits.float().cpu())

    @torch.inference_mode()
    def _write(self, rows: Sequence[list[int]], max_new_tokens: int, temperature: float = 0.0) -> list[str]:
        from transformers import GenerationConfig

        configure: Any = GenerationConfig
        how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
        settings = configure(
            **({"do_sample": False} | how),
            repetition_penalty=1.0,
            max_new_tokens=max_new_tokens,
            eos_token_id=self._model.generation_config.eos_token_id or self._tokenizer.eos_token_id,
            pad_token_id=self._pad,
        )
        inputs = self._inputs(rows)
        out = self._model.generate(**inputs, generation_config=settings)[:, inputs["input_ids"].shape[1] :]
        texts: list[str] = self._tokenizer.batch_decode(out, skip_special_tokens=True)
        return texts

    def _sample(self, item: GenerateItem, number: int) -> str:
        """Draw one completion; the global random state stays as it was."""
        devices = [self._model.device] if self._model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed((item.seed + number) % 2**63)
            return self._write([self._encode(item.prompt)], item.max_new_tokens, item.temperature)[0]


def open_text_model(ref: ModelRef, runtime: Runtime) -> TextModel:
    """Load a model that reads and writes text: a causal language model, or a vision-language model without images.

    Also sets torch's thread count (``runtime.torch_threads``).

    Raises:
        ModelError: If it cannot be loaded.
    """
    path = resolve_model_path(ref.path)
    if _is_vision_model(path, ref):
        from lewis_core.models.vlm import open_model

        return open_model(ref, runtime, Path())
    if runtime.torch_threads:
        torch.set_num_threads(runtime.torch_threads)
    model, tokenizer = load_causal_model(ref, runtime)
    return CausalLanguageModel(model, tokenizer, runtime.batch_size)


def load_causal_model(ref: ModelRef, runtime: Runtime) -> tuple[Any, Any]:
    """Load a causal language model, in evaluation mode, and its tokenizer.

    Raises:
        ModelError: If anything is missing or damaged, there is an adapter, or no chat template.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if ref.adapter is not None:
        raise ModelError(f"{ref.path}: a language model's adapter is not read; merge it into the model first")
    path = resolve_model_path(ref.path)
    folder = Path(path)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} has no weights: expected *.safetensors; pickled weights are not read")
    loader: Any = AutoModelForCausalLM
    tokenizers: Any = AutoTokenizer
    device = resolve_device(runtime)
    options = {"revision": ref.revision, "trust_remote_code": False}
    try:
        tokenizer = tokenizers.from_pretrained(path, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what transformers warns of is an error below
            model, info = loader.from_pretrained(
                path,
                dtype=resolve_dtype(ref, device),
                attn_implementation=ref.attention,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
    except _LOADING_ERRORS as error:
        raise ModelError(f"the language model {ref.path} cannot be loaded: {error}") from error
    if wrong := sorted(map(str, (*info["missing_keys"], *info["mismatched_keys"]))):
        raise ModelError(
            f"the weights of {ref.path} do not fit its config.json: {len(wrong)} tensors are missing or have another "
            f"shape, e.g. {wrong[0]}"
        )
    return model.to(device).eval(), tokenizer


def _is_vision_model(path: str, ref: ModelRef) -> bool:
    """Whether a checkpoint is an image-text-to-text model of transformers."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    try:
        kind = AutoConfig.from_pretrained(path, revision=ref.revision, trust_remote_code=False).model_type
    except _LOADING_ERRORS as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"{ref.path} cannot be read as a model: {first}. Without a connection, download the model elsewhere and "
            "give its folder"
        ) from error
    return kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def _chat_frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token ids before and after the user's text.

    Raises:
        ModelError: If there is no chat template, or it drops or changes the text.
    """
    if not tokenizer.chat_template:
        raise ModelError("the tokenizer has no chat template: expected a model that follows instructions")
    chat: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": _MARK}], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    before, mark, after = chat.partition(_MARK)
    if not mark or _MARK in after:
        raise ModelError("the chat template does not show the user's text exactly once")
    opening, closing = (list(tokenizer.encode(text, add_special_tokens=False)) for text in (before, after))
    return opening, closing


def _refuse_images(images: Iterator[str | None]) -> None:
    for image in images:
        if image is not None:
            raise ModelError(f"a language model sees no images, and was asked about {image!r}")
