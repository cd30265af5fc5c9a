"""Whole games by every way to compute them: packed rows, a repeated cache, one plain forward pass for each pair.

Ways that keep keys and values of photos have them from the examples before.
"""

import copy
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lewis_core.config.base import ModelRef, Runtime
from lewis_core.listener.schemas import ChoiceItem, GameScores, Question, ScoreGame
from lewis_core.models import packing, wide_products
from lewis_core.models.continuation import Prefilled, Prompt, last_logits
from lewis_core.models.features import ImageFeatures, VisionEncoder
from lewis_core.models.images import ImageFolder
from lewis_core.models.loading import load_model
from lewis_core.models.shared_prefix import EngineOptions
from lewis_core.models.vlm import VisionLanguageModel
from lewis_core.prompts import CONCISE
from lewis_core.testing import write_image, write_tiny_checkpoint

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
SIZES = {"a.jpg": (56, 84), "b.jpg": (112, 56), "c.jpg": (84, 84), "d.jpg": (56, 56)}
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-7}
"""Largest differences of log-odds of about 10; RMSNorm is float32 inside a float64 model."""
Answering = dict[str, VisionLanguageModel]


@pytest.fixture(autouse=True)
def small_products_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models would never ask for those that large ones ask for."""
    monkeypatch.setattr(wide_products, "LEAST_WEIGHT", 0)


class World:
    """A family's model in two precisions, and each way to ask it."""

    def __init__(self, folder: Path, family: str) -> None:
        write_tiny_checkpoint(folder / "model", family=family)
        for seed, (name, size) in enumerate(SIZES.items()):
            write_image(folder / name, seed)
            Image.open(folder / name).resize(size).save(folder / name)
        ref = ModelRef(path=str(folder / "model"), min_pixels=784)
        self.model, self.processor = load_model(ref, Runtime(device="cpu", torch_threads=1))
        self.images = ImageFolder(folder)
        double = copy.deepcopy(self.model).double()
        self.answering: dict[torch.dtype, Answering] = {
            torch.float32: self._ways(self.model),
            torch.float64: self._ways(double),
        }

    def _ways(self, model: Any) -> Answering:
        def make(engine: str = "shared_prefix", **options: Any) -> VisionLanguageModel:
            return VisionLanguageModel(
                model, self.processor, CONCISE, self.images, engine=engine, options=EngineOptions(**options)
            )

        return {
            "packed": make(packed=True),
            "cached": make(packed=False),
            "packed in small rows": make(packed=True, batch_tokens=200),
            "keys kept": make(prompt_bytes=1 << 20),
            "keys kept, little room, small rows": make(prompt_bytes=50_000, batch_tokens=200),
            "cached in small batches": make(packed=False, batch_tokens=200),
            "plain": make("plain"),
        }


@pytest.fixture(scope="module", params=FAMILIES)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("exactness"), request.param)


def numbers(scores: Sequence[GameScores]) -> torch.Tensor:
    """Everything that a call answers, in one row."""
    return torch.tensor(
        [
            value
            for game in scores
            for matrix in (game.yes_log_odds, game.yes_probability, game.captured_mass)
            for row in matrix
            for value in row
        ],
        dtype=torch.float64,
    )


texts = st.text(st.sampled_from("a red mug, with ÄŌ"), min_size=1, max_size=40).filter(str.strip)
games = st.lists(
    st.builds(
        ScoreGame,
        candidates=st.lists(st.sampled_from(list(SIZES)), min_size=1, max_size=3).map(tuple),
        descriptions=st.lists(texts, min_size=1, max_size=3).map(tuple),
        category=st.sampled_from(["mug", "bag"]),
    ),
    min_size=1,
    max_size=3,
)


@pytest.mark.parametrize("dtype", TOLERANCE)
@given(games=games)
@settings(max_examples=4, deadline=None)
def test_whole_games_are_scored_alike_by_every_way(world: World, dtype: torch.dtype, games: list[ScoreGame]) -> None:
    found = {way: numbers(model.score(games)) for way, model in world.answering[dtype].items()}
    expected = found.pop("plain")
    assert expected.isfinite().all()
    for of_way in found.values():
        torch.testing.assert_close(of_way, expected, atol=TOLERANCE[dtype], rtol=0)


def test_questions_with_and_without_images_are_answered_alike_by_every_way(world: World) -> None:
    questions = tuple(
        Question(prompt=prompt, choices=choices)
        for prompt in ("Is it red?", "Which one is it: A a mug, B a bag, C a hat?")
        for choices in (("yes", "no"), ("A", "B", "C"))
    )
    items = [ChoiceItem(image=image, questions=questions) for image in (None, "a.jpg", "b.jpg", None, "a.jpg")]
    found = {
        way: [[answer.log_probs for answer in of_item] for of_item in model.choose(items)]
        for way, model in world.answering[torch.float64].items()
    }
    expected = found.pop("plain")
    assert expected[0] == expected[3]
    assert expected[0] != expected[1]
    for answers in found.values():
        for one, other in zip(itertools.chain(*answers), itertools.chain(*expected), strict=True):
            assert one == pytest.approx(other, abs=TOLERANCE[torch.float64])


@given(data=st.data())
@settings(max_examples=4, deadline=None)
def test_order_and_repetition_do_not_matter(world: World, data: st.DataObject) -> None:
    """Candidates and descriptions in another order, some of them twice, beside other games: the same numbers, moved."""
    names, words = list(SIZES)[:3], ["A red mug.", "A photo of a bag, with a star.", "x"]
    columns = data.draw(st.lists(st.sampled_from(range(3)), min_size=1, max_size=4))
    rows = data.draw(st.lists(st.sampled_from(range(3)), min_size=1, max_size=4))
    other = ScoreGame(candidates=("d.jpg", *names), descriptions=("A hat.", *words), category="bag")
    moved = ScoreGame(candidates=[names[i] for i in columns], descriptions=[words[i] for i in rows])
    for way in ("packed", "cached", "packed in small rows"):
        model = world.answering[torch.float32][way]
        [whole] = model.score([ScoreGame(candidates=tuple(names), descriptions=tuple(words))])
        together = data.draw(st.permutations([other, moved]))
        part = model.score(together)[together.index(moved)]
        expected = torch.tensor(whole.yes_log_odds)[rows][:, columns]
        torch.testing.assert_close(torch.tensor(part.yes_log_odds), expected, atol=TOLERANCE[torch.float32], rtol=0)


def test_several_images_in_one_prompt_equal_the_processor_s_own_way(world: World) -> None:
    """Pixels through the whole model, one question at a time, against features, packed and cached."""
    encoder = VisionEncoder(world.model, world.processor.image_processor, world.images, 1 << 20, 1)
    features = encoder({name: name for name in SIZES})
    placeholder, tokenizer = "<|vision_start|><|image_pad|><|vision_end|>", world.processor.tokenizer
    image_token, pad = int(world.model.config.image_token_id), tokenizer.pad_token_id
    work = [
        (("a.jpg", "b.jpg"), ("Same?", "Is the first one red?")),
        (("b.jpg", "c.jpg", "b.jpg"), ("Which?",)),
        (("d.jpg",), ("A", "B or C")),
    ]
    prompts, questions, expected = [], [], []
    for names, asked in work:
        chat = "".join(f"See {placeholder}, " for _ in names) + "<|im_end|>"
        for question in asked:
            inputs = world.processor(
                text=[chat + question], images=[world.images.load(name) for name in names], return_tensors="pt"
            )
            with torch.no_grad():
                expected.append(world.model(**inputs).logits[0, -1])
        prompts.append(prompt_of(inputs["input_ids"][0].tolist(), tokenizer, [features[name] for name in names]))
        questions.append([tokenizer.encode(question, add_special_tokens=False) for question in asked])
    groups = [packing.Group.of_questions(prompt, of_it) for prompt, of_it in zip(prompts, questions, strict=True)]
    with torch.no_grad():
        packed = packing.last_logits(world.model, packing.pack(world.model, groups, image_token))
        state = Prefilled(world.model, prompts, image_token, pad)
        rows = [row for row, of_it in enumerate(questions) for _ in of_it]
        cached = last_logits(state, rows, list(itertools.chain(*questions)))
    torch.testing.assert_close(packed, torch.stack(expected), atol=3e-5, rtol=0)
    torch.testing.assert_close(cached, torch.stack(expected), atol=3e-5, rtol=0)


def prompt_of(ids: list[int], tokenizer: Any, images: Sequence[ImageFeatures]) -> Prompt:
    """What comes before the question: everything up to the end of the first turn."""
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    return Prompt(ids[: ids.index(end) + 1], tuple(images))
