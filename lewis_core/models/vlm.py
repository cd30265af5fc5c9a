"""A vision-language model in this process: scores games, chooses answers, writes text.

Every question is a continuation of an image. An engine runs the model: the fast one reads an image, and what its
questions have in common, once (:mod:`lewis_core.models.shared_prefix`); the plain one makes one forward pass for each
question (:mod:`lewis_core.models.plain`). Results do not depend on the engine or on what else is in a call, up to
rounding.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lewis_core.config.base import ModelRef, Runtime
from lewis_core.listener.schemas import (
    CacheStatistics,
    ChoiceAnswer,
    ChoiceItem,
    GameScores,
    GenerateItem,
    ScoreGame,
    Serves,
)
from lewis_core.listener.scoring import captured_mass, yes_log_odds, yes_probability
from lewis_core.models.adapters import describe_ref
from lewis_core.models.answers import YES_NO, answer_token_ids
from lewis_core.models.engine import Engine, Text, read_frame
from lewis_core.models.images import ImageFolder, ImageSource
from lewis_core.models.loading import free_bytes, load_model
from lewis_core.models.pairs import PairedImages
from lewis_core.models.plain import PlainEngine
from lewis_core.models.sampling import Sampling
from lewis_core.models.shared_prefix import EngineOptions, SharedPrefixEngine
from lewis_core.prompts import PromptSet, prompt_set
from lewis_core.seeding import stable_seed

logger = logging.getLogger(__name__)
READ_ROWS = 256
"""Rows of logits that are turned to float32 at once: a row has as many numbers as the vocabulary has tokens."""
KEPT_SHARE = 0.25
"""Of a GPU's free memory, for keys and values of photos: four services of one GPU leave each other room."""
Choices = tuple[str, ...]


class VisionLanguageModel:
    """An :class:`~lewis_core.models.protocol.AnsweringModel` in this process.

    Args:
        model: A model of transformers, or its PEFT wrapper, in evaluation mode.
        processor: Its processor.
        prompts: Wording of the listener's question.
        images: Where image references lead.
        engine: ``shared_prefix`` (Qwen-VL models) or ``plain``.
        options: How the fast engine uses memory.
        serves: What it is called and how it was loaded.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        prompts: PromptSet,
        images: ImageSource,
        *,
        engine: str = "shared_prefix",
        options: EngineOptions | None = None,
        serves: Serves | None = None,
    ) -> None:
        self.serves = serves
        self.computes_here: bool = model.device.type == "cpu"
        """Whether it keeps this process's CPU busy, so that to ask it is not to wait."""
        self._tokenizer, self._prompts, self._images = processor.tokenizer, prompts, images
        self._frames = {has_image: read_frame(processor, has_image) for has_image in (True, False)}
        self._engine: Engine = (
            PlainEngine(model, processor, images, self._frames)
            if engine == "plain"
            else SharedPrefixEngine(model, processor, images, self._frames, options or EngineOptions())
        )
        self._answers: dict[Choices, list[list[int]]] = {}

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
        texts = self._texts([(item.image, item.prompt) for item in items])
        rows = [
            (index, Sampling(item.max_new_tokens, item.temperature, _seed(item, text, number)))
            for index, (item, text) in enumerate(zip(items, texts, strict=True))
            for number in range(item.num_return)
        ]
        written = self._engine.write(texts, [index for index, _ in rows], [sampling for _, sampling in rows])
        decoded = iter(
            self._tokenizer.batch_decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )
        return [[next(decoded) for _ in range(item.num_return)] for item in items]

    def vision_cache(self) -> CacheStatistics | None:
        """How well vision features are reused; ``None`` if the engine keeps none. May be called from any thread."""
        return self._engine.vision_cache()

    def prompt_cache(self) -> CacheStatistics | None:
        """How well keys and values of photos are reused; ``None`` if none are kept. May be called from any thread."""
        return self._engine.prompt_cache()

    def _answer(self, asked: Sequence[tuple[str | None, str, Choices]]) -> list[tuple[float, ...]]:
        """Log-probability of each choice, for (image, prompt, choices)."""
        for choices in {choices for _, _, choices in asked} - set(self._answers):
            self._answers[choices] = answer_token_ids(self._tokenizer, choices)
        found: list[tuple[list[int], Tensor]] = []

        def read(places: Sequence[int], logits: Tensor) -> None:
            rows_by_choices: dict[Choices, list[int]] = {}
            for row, place in enumerate(places):
                rows_by_choices.setdefault(asked[place][2], []).append(row)
            for choices, rows in rows_by_choices.items():
                of_rows = logits if len(rows) == len(places) else logits[rows]
                found.append(([places[row] for row in rows], _log_probs(of_rows, self._answers[choices])))

        self._engine.answer(self._texts([(image, prompt) for image, prompt, _ in asked]), read)
        answers: list[tuple[float, ...]] = [()] * len(asked)
        for places, values in found:  # only now, so that a GPU need not wait between batches
            if not bool(values.isfinite().all()):
                raise FloatingPointError("the model's output is not a number; try another precision")
            for place, of_place in zip(places, values.tolist(), strict=True):
                answers[place] = tuple(of_place)
        return answers

    def _texts(self, asked: Sequence[tuple[str | None, str]]) -> list[Text]:
        """What the model reads, for (image, prompt). Special tokens spelled out in a prompt stay text."""
        digests = {image: self._images.digest(image) for image in dict.fromkeys(image for image, _ in asked) if image}
        prompts = list(dict.fromkeys(prompt for _, prompt in asked))
        if not prompts:
            return []
        encoded = self._tokenizer(prompts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        ids = dict(zip(prompts, encoded, strict=True))
        return [
            Text(image, digests[image] if image else None, ids[prompt] + self._frames[image is not None].closing)
            for image, prompt in asked
        ]


def open_model(ref: ModelRef, runtime: Runtime, images: Path | ImageSource) -> VisionLanguageModel:
    """Load a model that answers about images.

    Args:
        ref: The model.
        runtime: How it runs.
        images: Where image references lead, or the folder that they are relative to.

    Raises:
        ModelError: If it cannot be loaded.
    """
    model, processor = load_model(ref, runtime)
    vision_bytes = runtime.vision_cache_mib << 20
    options = EngineOptions(
        batch_size=runtime.batch_size,
        batch_tokens=runtime.batch_tokens,
        num_workers=runtime.num_workers,
        cache_bytes=vision_bytes,
        prompt_bytes=prompt_bytes(runtime.prompt_cache_mib, model.device, vision_bytes),
    )
    source = PairedImages(ImageFolder(images) if isinstance(images, Path) else images)
    opened = VisionLanguageModel(
        *(model, processor, prompt_set(ref.prompts), source),
        engine=ref.engine,
        options=options,
        serves=describe_ref(ref),
    )
    if kept := opened.prompt_cache():
        logger.info("%s: up to %d MiB for keys and values of photos", ref.path, kept.max_bytes >> 20)
    return opened


def prompt_bytes(asked_mib: int | None, device: torch.device, vision_bytes: int) -> int:
    """Memory for keys and values of photos, once a model's weights are on its device.

    Args:
        asked_mib: What the settings say; ``None`` leaves it to the device: a CPU is better off without any where photos
            are small, and a GPU gives a share of what is free.
        device: The model's.
        vision_bytes: What vision features may take of the free memory.
    """
    if asked_mib is None and device.type != "cuda":
        return 0
    free = max(0, int(free_bytes(device)) - vision_bytes)
    if asked_mib is None:
        return int(KEPT_SHARE * free)
    asked = asked_mib << 20
    if asked > free:
        logger.warning(
            "prompt_cache_mib = %d, but %d MiB of memory are free beside vision features: what is kept will be dropped "
            "when memory runs out",
            *(asked_mib, free >> 20),
        )
    return asked


def _log_probs(logits: Tensor, choices: Sequence[Sequence[int]]) -> Tensor:
    """Log-probability of each choice, its spellings summed: (rows, choices), from (rows, vocabulary)."""
    found = []
    for part in torch.split(logits, READ_ROWS):
        exact = part.to(torch.promote_types(part.dtype, torch.float32))
        sums = torch.stack([exact[:, list(ids)].logsumexp(-1) for ids in choices], 1)
        found.append(sums - exact.logsumexp(-1, keepdim=True))
    return torch.cat(found)


def _seed(item: GenerateItem, text: Text, number: int) -> int:
    return stable_seed(item.seed, text.digest or "", item.prompt, number)


__all__ = ["VisionLanguageModel", "open_model"]
