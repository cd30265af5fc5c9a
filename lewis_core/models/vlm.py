"""A vision-language model in this process: scores games, chooses answers, writes text.

Every question is a continuation of an image: the image and what its questions have in common are read once, then
continued with each question (:mod:`lewis_core.models.continuation`). Vision features are computed once per image and
kept. Results do not depend on what else is in a call, up to rounding.
"""

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lewis_core.config.base import ModelRef, Runtime
from lewis_core.errors import ModelError
from lewis_core.listener.schemas import ChoiceAnswer, ChoiceItem, GameScores, GenerateItem, ScoreGame
from lewis_core.listener.scoring import captured_mass, yes_log_odds, yes_probability
from lewis_core.models.answers import YES_NO, answer_token_ids
from lewis_core.models.continuation import Prefilled, Prompt, last_logits
from lewis_core.models.features import ImageFeatures, VisionEncoder
from lewis_core.models.images import ImageFolder, ImageSource
from lewis_core.models.sampling import Sampler, Sampling
from lewis_core.prompts import PromptSet, prompt_set
from lewis_core.seeding import stable_seed

logger = logging.getLogger(__name__)
_MARK = "LEWISPROMPTGOESHERE"
_WAVE = 4
"""Questions of one wave, in forward passes; sorting them by length saves padding."""
CACHE_BYTES = 2 << 30
_Answer = tuple[int, tuple[float, ...]]


@dataclass(frozen=True)
class _Question:
    """One row of work: a question about an image, or about none, and its place in the caller's list."""

    index: int
    image: str | None
    """Digest."""
    ids: list[int]
    """Tokens after the image."""
    choices: tuple[str, ...]


@dataclass(frozen=True)
class _Group:
    """Questions about the same image."""

    image: str | None
    questions: list[_Question]

    def split(self) -> tuple[list[int], list[list[int]]]:
        """Tokens that all questions begin with, and what is left of each (at least one token)."""
        rows = [question.ids for question in self.questions]
        first, last = min(rows), max(rows)  # what these two share, all share
        common = next((at for at, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
        common = min(common, min(map(len, rows)) - 1)
        return rows[0][:common], [row[common:] for row in rows]


@dataclass(frozen=True)
class _Completion:
    """One completion to be written."""

    item: int
    sampling: Sampling


class VisionLanguageModel:
    """An :class:`~lewis_core.models.protocol.AnsweringModel` in this process.

    Args:
        model: A Qwen-VL model of transformers, or its PEFT wrapper, in evaluation mode.
        processor: Its processor.
        prompts: Wording of the listener's question.
        images: Where image references lead.
        batch_size: Rows of one forward pass; halved, for good, when the GPU's memory runs out.
        num_workers: Threads that decode images.
        cache_bytes: Memory for vision features.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        prompts: PromptSet,
        images: ImageSource,
        *,
        batch_size: int = 64,
        num_workers: int = 2,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._model, self._tokenizer, self._prompts, self._images = model, processor.tokenizer, prompts, images
        self._batch_size = batch_size
        self._encoder = VisionEncoder(model, processor.image_processor, images, cache_bytes, num_workers)
        self._merge: int = processor.image_processor.merge_size**2
        config = model.config
        self._image_token: int = config.image_token_id
        self._pad: int = processor.tokenizer.pad_token_id
        self._sampler = Sampler(
            model,
            image_token_id=self._image_token,
            pad_id=self._pad,
            eos_ids=_eos_ids(model, processor.tokenizer),
            banned=[config.image_token_id, config.video_token_id],
        )
        self._frames = {has_image: _frame(processor, has_image) for has_image in (True, False)}
        self._answers: dict[tuple[str, ...], list[list[int]]] = {}

    def score(self, games: Sequence[ScoreGame]) -> list[GameScores]:
        """Score every description of each game against every candidate.

        Raises:
            ImageError: If a candidate cannot be used.
            ModelError: If one question alone does not fit into memory.
        """
        asked = [
            (image, self._prompts.match(game.category, text), YES_NO)
            for game in games
            for text in game.descriptions
            for image in game.candidates
        ]
        answers = iter(self._answer(asked))
        scores = []
        for game in games:
            rows = [[next(answers) for _ in game.candidates] for _ in game.descriptions]
            odds = tuple(tuple(yes_log_odds(*answer) for answer in row) for row in rows)
            scores.append(
                GameScores(
                    yes_log_odds=odds,
                    yes_probability=tuple(tuple(map(yes_probability, row)) for row in odds),
                    captured_mass=tuple(tuple(map(captured_mass, row)) for row in rows),
                )
            )
        return scores

    def choose(self, items: Sequence[ChoiceItem]) -> list[list[ChoiceAnswer]]:
        """Answer multiple-choice questions about images.

        Raises:
            ImageError: If an image cannot be used.
            ModelError: If two choices begin with the same token, or one question alone does not fit into memory.
        """
        asked = [(item.image, question.prompt, question.choices) for item in items for question in item.questions]
        answers = iter(self._answer(asked))
        return [
            [
                ChoiceAnswer(log_probs=log_probs, captured_mass=captured_mass(log_probs))
                for log_probs in (next(answers) for _ in item.questions)
            ]
            for item in items
        ]

    def generate(self, items: Sequence[GenerateItem]) -> list[list[str]]:
        """Continue prompts.

        A completion depends on its image, prompt, seed and place among its siblings, not on its neighbours in the
        batch (except where rounding decides between two tokens). The checkpoint's own sampling defaults
        (repetition penalty, top-k, top-p) are not applied.

        Raises:
            ImageError: If an image cannot be used.
            ModelError: If one prompt alone does not fit into memory.
        """
        digests = self._digests([item.image for item in items])
        ids = self._encode_texts([(item.prompt, item.image is not None) for item in items])
        work = [
            _Completion(index, Sampling(item.max_new_tokens, item.temperature, _seed(item, digests, number)))
            for index, item in enumerate(items)
            for number in range(item.num_return)
        ]
        work.sort(key=lambda one: (one.sampling.max_new_tokens, len(ids[one.item]), one.item))
        texts: list[list[str]] = [[] for _ in items]
        for chunk in self._in_batches(work, lambda batch: self._complete(items, digests, ids, batch)):
            for index, text in chunk:
                texts[index].append(text)
        return texts

    def _answer(self, asked: Sequence[tuple[str | None, str, tuple[str, ...]]]) -> list[tuple[float, ...]]:
        """Log-probability of each choice, for (image, prompt, choices)."""
        for choices in {choices for _, _, choices in asked} - set(self._answers):
            self._answers[choices] = answer_token_ids(self._tokenizer, choices)
        digests = self._digests([image for image, _, _ in asked])
        ids = self._encode_texts([(prompt, image is not None) for image, prompt, _ in asked])
        groups: dict[str | None, list[_Question]] = defaultdict(list)
        for index, ((image, _, choices), tokens) in enumerate(zip(asked, ids, strict=True)):
            digest = digests[image] if image is not None else None
            groups[digest].append(_Question(index, digest, tokens, choices))
        references = {digest: image for image, digest in digests.items()}
        work = sorted((_Group(*pair) for pair in groups.items()), key=lambda group: len(group.questions[0].ids))
        answers: list[tuple[float, ...]] = [()] * len(asked)
        for chunk in self._in_batches(work, lambda batch: self._answer_groups(batch, references)):
            for index, log_probs in chunk:
                answers[index] = log_probs
        return answers

    @torch.inference_mode()
    def _answer_groups(
        self, groups: Sequence[_Group], references: dict[str, str]
    ) -> list[tuple[int, tuple[float, ...]]]:
        """Answer all questions about some images: read the images once, then the questions, sorted by length."""
        features = self._encoder({group.image: references[group.image] for group in groups if group.image})
        prompts, rows = [], []
        for number, group in enumerate(groups):
            common, rest = group.split()
            prompts.append(self._prompt(common, features.get(group.image or "")))
            rows += [(number, question, ids) for question, ids in zip(group.questions, rest, strict=True)]
        state = Prefilled(self._model, prompts, self._image_token, self._pad)
        rows.sort(key=lambda row: len(row[2]))
        answers: list[_Answer] = []
        for start in range(0, len(rows), self._batch_size):
            chunk = rows[start : start + self._batch_size]
            logits = last_logits(state, [row[0] for row in chunk], [row[2] for row in chunk])
            answers += self._read([row[1] for row in chunk], logits.float().log_softmax(-1))
        return answers

    def _read(self, questions: Sequence[_Question], log_probs: torch.Tensor) -> Iterator[_Answer]:
        """Sum the spellings of each choice; ``log_probs`` is (questions, vocabulary)."""
        rows_by_choices: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for row, question in enumerate(questions):
            rows_by_choices[question.choices].append(row)
        for choices, rows in rows_by_choices.items():
            of_rows = log_probs[rows]
            sums = torch.stack([of_rows[:, ids].logsumexp(-1) for ids in self._answers[choices]], 1)
            if not bool(sums.isfinite().all()):
                raise FloatingPointError("the model's output is not a number; try another precision")
            for row, values in zip(rows, sums.tolist(), strict=True):
                yield questions[row].index, tuple(values)

    @torch.inference_mode()
    def _complete(
        self,
        items: Sequence[GenerateItem],
        digests: dict[str, str],
        ids: Sequence[list[int]],
        batch: Sequence[_Completion],
    ) -> list[tuple[int, str]]:
        """Write some completions: (item, text)."""
        wanted = list(dict.fromkeys(one.item for one in batch))
        images = {index: image for index in wanted if (image := items[index].image) is not None}
        features = self._encoder({digests[image]: image for image in images.values()})
        prompts = [
            self._prompt(ids[index], features[digests[images[index]]] if index in images else None) for index in wanted
        ]
        place = {item: number for number, item in enumerate(wanted)}
        written = self._sampler.sample(prompts, [place[one.item] for one in batch], [one.sampling for one in batch])
        tokens = [completion.ids for completion in written]
        texts = self._tokenizer.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [(one.item, text) for one, text in zip(batch, texts, strict=True)]

    def _in_batches(self, work: Sequence[Any], run: Any) -> Iterator[Any]:
        """Run work in pieces that fit; when memory runs out, with half as many rows."""
        start = 0
        while start < len(work):
            batch = _take(work[start:], self._batch_size)
            try:
                yield run(batch)
                start += len(batch)
            except torch.OutOfMemoryError as error:
                if self._batch_size == 1:
                    raise ModelError("one image with one question alone does not fit into the GPU's memory") from error
                self._batch_size //= 2
                self._sampler.clear()
                logger.warning("out of GPU memory: going on with %d rows a batch", self._batch_size)
            if self._model.device.type == "cuda" and start < len(work):
                torch.cuda.empty_cache()

    def _prompt(self, ids: list[int], image: ImageFeatures | None) -> Prompt:
        """Put the chat's opening, with room for the image, in front of tokens."""
        opening = self._frames[image is not None][0]
        if image is None:
            return Prompt(opening + ids)
        at = opening.index(self._image_token)
        visual = [self._image_token] * (int(image.grid.prod()) // self._merge)
        return Prompt(opening[:at] + visual + opening[at + 1 :] + ids, (image,))

    def _encode_texts(self, texts: Sequence[tuple[str, bool]]) -> list[list[int]]:
        """Tokens from the prompt's text to the end of the chat. Special tokens spelled out in a text stay text."""
        unique = list(dict.fromkeys(text for text, _ in texts))
        encoded = self._tokenizer(unique, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        by_text = dict(zip(unique, encoded, strict=True))
        return [by_text[text] + self._frames[has_image][1] for text, has_image in texts]

    def _digests(self, references: Sequence[str | None]) -> dict[str, str]:
        return {reference: self._images.digest(reference) for reference in dict.fromkeys(references) if reference}


def open_model(ref: ModelRef, runtime: Runtime, image_root: Path) -> VisionLanguageModel:
    """Load a model that answers about images below a folder.

    Raises:
        ModelError: If it cannot be loaded.
    """
    from lewis_core.models.loading import load_model

    model, processor = load_model(ref, runtime)
    return VisionLanguageModel(
        model,
        processor,
        prompt_set(ref.prompts),
        ImageFolder(image_root),
        batch_size=runtime.batch_size,
        num_workers=runtime.num_workers,
    )


def _take(work: Sequence[Any], batch_size: int) -> Sequence[Any]:
    """The first pieces of work: at most ``batch_size``, and of questions at most a wave."""
    rows = 0
    for count, piece in enumerate(work[:batch_size]):
        rows += len(piece.questions) if isinstance(piece, _Group) else 1
        if rows > _WAVE * batch_size and count:
            return work[:count]
    return work[:batch_size]


def _frame(processor: Any, has_image: bool) -> tuple[list[int], list[int]]:
    """Tokens of the chat before and after a prompt's text.

    Raises:
        ModelError: If the chat template drops or changes the text.
    """
    content = [{"type": "text", "text": _MARK}]
    if has_image:
        content.insert(0, {"type": "image"})
    chat = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    before, mark, after = chat.partition(_MARK)
    if not mark or _MARK in after:
        raise ModelError("the chat template does not show the user's text exactly once")
    frame: tuple[list[int], list[int]] = tuple(
        processor.tokenizer.encode(text, add_special_tokens=False) for text in (before, after)
    )
    return frame


def _eos_ids(model: Any, tokenizer: Any) -> list[int]:
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({token for token in (*ids, tokenizer.eos_token_id) if token is not None})


def _seed(item: GenerateItem, digests: dict[str, str], number: int) -> int:
    return stable_seed(item.seed, digests[item.image] if item.image else "", item.prompt, number)


__all__ = ["VisionLanguageModel", "open_model"]
