"""Keys and values of photos: what is taken over, when it is dropped, how much room it has.

Exactness of whole games is tested in :mod:`tests.core.test_models_exactness`.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from lewis_core.config.base import ModelRef, Runtime
from lewis_core.listener.schemas import ChoiceItem, GenerateItem, Question, ScoreGame
from lewis_core.models import packing, vlm
from lewis_core.models.images import ImageFolder
from lewis_core.models.kept_prompts import KeptPrompt, common_length
from lewis_core.models.loading import load_model, use_engine
from lewis_core.models.packing import Beginning
from lewis_core.models.shared_prefix import EngineOptions
from lewis_core.models.vlm import VisionLanguageModel, open_model
from lewis_core.prompts import CONCISE
from lewis_core.testing import write_image, write_tiny_checkpoint

IMAGES = ("0.jpg", "1.jpg", "2.jpg")
FIRST, SECOND = ("A red mug.", "A hat."), ("Blue, with a star.", "x", "A red mug.")


class World:
    """A model with two adapters, and photos."""

    def __init__(self, folder: Path) -> None:
        self.checkpoint = write_tiny_checkpoint(folder / "model", family="qwen3_vl")
        self.folder = folder
        for index, name in enumerate(IMAGES):
            write_image(folder / name, index)
        self.ref = ModelRef(path=str(self.checkpoint), min_pixels=784, max_pixels=3136)
        model, self.processor = load_model(self.ref, Runtime(device="cpu"))
        torch.manual_seed(0)
        config = LoraConfig(r=2, target_modules="all-linear", exclude_modules=".*visual.*")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft asks transformers for a deprecated name
            self.model = get_peft_model(model, config)
            self.model.add_adapter("other", config)
        for name, parameter in self.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        use_engine(self.model.eval())

    def open(self, **options: Any) -> VisionLanguageModel:
        """The facade, keeping keys unless told otherwise."""
        chosen = EngineOptions(**{"prompt_bytes": 1 << 20, **options})
        return VisionLanguageModel(
            self.model, self.processor, CONCISE, ImageFolder(self.folder), engine="shared_prefix", options=chosen
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("kept"))


@contextmanager
def rows_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[int]]]:
    """Tokens of each group's prompt in the row, for every row that is packed inside."""
    seen: list[list[int]] = []
    real = packing.pack
    with monkeypatch.context() as patch:
        patch.setattr(
            packing, "pack", lambda m, groups, i: seen.append([g.prompt_tokens for g in groups]) or real(m, groups, i)
        )
        yield seen


def game(descriptions: tuple[str, ...], images: tuple[str, ...] = IMAGES, category: str = "mug") -> list[ScoreGame]:
    return [ScoreGame(candidates=images, descriptions=descriptions, category=category)]


def odds(model: VisionLanguageModel, asked: list[ScoreGame]) -> torch.Tensor:
    return torch.tensor([of_game.yes_log_odds for of_game in model.score(asked)])


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_photos_that_come_again_are_neither_decoded_nor_computed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    model, fresh = world.open(), world.open(prompt_bytes=0)
    with rows_of(monkeypatch) as first:
        assert_same(odds(model, game(FIRST)), odds(fresh, game(FIRST)))
    loaded: list[str] = []
    monkeypatch.setattr(model._engine._encoder, "_preprocess", loaded.append)
    with rows_of(monkeypatch) as second:
        found = odds(model, game(SECOND))
    assert (loaded, second) == ([], [[0, 0, 0]])  # all of the question is kept up to where descriptions begin
    assert min(first[0]) > 4
    assert_same(found, odds(fresh, game(SECOND)))
    kept = model.prompt_cache()
    assert kept is not None
    assert (kept.entries, kept.hits, kept.misses, kept.evictions) == (3, 3, 3, 0)
    assert kept.num_bytes == sum(first[0]) * 2 * 2 * 2 * 16 * 4  # keys and values, layers, heads, head dim, bytes
    assert fresh.prompt_cache() is None


def test_what_is_shared_may_be_shorter_or_longer_than_what_is_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One question alone keeps all of it but its last token; another category shares less of it."""
    model, fresh = world.open(), world.open(prompt_bytes=0)
    odds(model, game(("A red mug with a star.",), category="mug"))
    question = (Question(prompt="Is it?", choices=("yes", "no")),)
    for asked in (
        game(FIRST, category="bag"),
        game(("A red mug with a hat.",)),
        game(SECOND),
        game(("A",), IMAGES[:2]),
    ):
        with rows_of(monkeypatch) as rows:
            found = odds(model, asked)
        assert len(rows) == 1
        assert_same(found, odds(fresh, asked))
    items = [ChoiceItem(image=image, questions=question) for image in ("1.jpg", None)]
    answers, expected = ([a.log_probs for [a] in one.choose(items)] for one in (model, fresh))
    assert_same(torch.tensor(answers), torch.tensor(expected))
    assert model.prompt_cache().entries == 3  # a prompt without an image is not kept


def test_prompts_take_over_what_both_begin_with() -> None:
    """Of 2 tokens through the image and [7, 8] behind it, at positions up to 4: [7, 9] shares 3, and 4 follows."""
    keys = torch.arange(4.0).view(1, 1, 4, 1, 1)
    kept = KeptPrompt(2, [7, 8], Beginning(keys, 5))
    before, left = kept.share([7, 9])
    assert (before.keys.flatten().tolist(), before.following, left) == ([0, 1, 2], 4, [9])
    before, left = kept.share([7, 8, 9])
    assert (before.keys.shape[2], before.following, left) == (4, 5, [9])
    before, left = kept.share([])
    assert (before.keys.shape[2], before.following, left) == (2, 3, [])
    assert common_length([1, 2], [1, 2, 3]) == 2


def test_new_weights_and_other_adapters_drop_what_is_kept(world: World) -> None:
    model, parameter = world.open(), next(p for n, p in world.model.named_parameters() if "lora_B" in n)

    def check(hits: int) -> None:
        before = model.prompt_cache().hits
        assert_same(odds(model, game(FIRST)), odds(world.open(prompt_bytes=0), game(FIRST)))
        assert model.prompt_cache().hits - before == hits

    check(0)
    check(3)
    world.model.set_adapter("other")
    check(0)
    world.model.set_adapter("default")
    check(0)
    with world.model.disable_adapter():
        check(0)
        check(3)
    check(0)
    original = parameter.detach().clone()
    with torch.no_grad():
        parameter.mul_(2)
    check(0)
    parameter.data = original
    check(0)
    model.generate([GenerateItem(image="0.jpg", prompt="Say.", max_new_tokens=2)])  # other weights for a while
    check(3)


def fail_once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """Let memory run out at the next call of a function."""
    real, failures = getattr(owner, name), [torch.OutOfMemoryError("out of memory")]

    def small(*work: Any) -> Any:
        if failures:
            raise failures.pop()
        return real(*work)

    monkeypatch.setattr(owner, name, small)


def test_memory_that_runs_out_takes_what_is_kept_before_it_takes_tokens(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two photos of a call are kept and wait; after the first row they are gone, and read again."""
    model, expected = world.open(batch_tokens=100), odds(world.open(prompt_bytes=0), game(SECOND))
    odds(model, game(FIRST, IMAGES[:2]))
    held = model.prompt_cache().num_bytes
    fail_once(monkeypatch, packing, "last_logits")
    assert_same(odds(model, game(SECOND)), expected)
    assert (model._engine._batch_tokens, model.prompt_cache().max_bytes) == (100, held // 2)
    nothing = world.open(batch_tokens=400)
    fail_once(monkeypatch, packing, "last_logits")
    assert_same(odds(nothing, game(SECOND)), expected)
    assert nothing._engine._batch_tokens < 400  # there was nothing to drop yet


@pytest.mark.parametrize("part", ["_sampler", "_encoder"])
def test_completions_and_images_take_memory_of_what_is_kept(
    world: World, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    model = world.open()
    odds(model, game(FIRST, IMAGES[:2]))
    owner = getattr(model._engine, part)
    fail_once(monkeypatch, owner, "sample" if part == "_sampler" else "_run")
    [[text]] = model.generate([GenerateItem(image="2.jpg", prompt="Say.", max_new_tokens=2)])
    [[expected]] = world.open().generate([GenerateItem(image="2.jpg", prompt="Say.", max_new_tokens=2)])
    assert (text, model.prompt_cache().entries, model._engine._batch_size) == (expected, 0, 64)


def test_the_room_is_kept_to(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with rows_of(monkeypatch) as rows:
        odds(world.open(), game(FIRST))
    size = rows[0][0] * 2 * 2 * 2 * 16 * 4
    model, fresh = world.open(prompt_bytes=2 * size), world.open(prompt_bytes=0)
    for images in (IMAGES, IMAGES[1:], IMAGES[:2], IMAGES[::-1], IMAGES):
        assert_same(odds(model, game(FIRST, images)), odds(fresh, game(FIRST, images)))
        assert model.prompt_cache().num_bytes <= 2 * size
    assert model.prompt_cache().evictions > 0
    nothing = world.open(prompt_bytes=size // 2)
    odds(nothing, game(FIRST))
    assert nothing.prompt_cache().entries == 0


def test_settings_reach_the_engine(world: World) -> None:
    """A CPU packs rows when it keeps keys; attention with dense masks keeps none."""
    runtime = Runtime(device="cpu", prompt_cache_mib=1)
    model = open_model(world.ref, runtime, world.folder)
    odds(model, game(FIRST))
    assert model.prompt_cache().entries == 3
    assert model.prompt_cache().max_bytes == 1 << 20
    eager = open_model(world.ref.model_copy(update={"attention": "eager"}), runtime, world.folder)
    assert_same(odds(eager, game(FIRST)), odds(model, game(FIRST)))
    assert eager.prompt_cache() is None
    assert open_model(world.ref, Runtime(device="cpu"), world.folder).prompt_cache() is None


@pytest.mark.parametrize(
    ("device", "asked_mib", "expected", "warned"),
    [
        pytest.param("cpu", None, 0, False, id="no-room-of-a-cpu-unasked"),
        pytest.param("cpu", 3, 3 << 20, False, id="cpu"),
        pytest.param("cuda", None, 2 << 20, False, id="a-quarter-of-what-vision-features-leave"),
        pytest.param("cuda", 0, 0, False, id="none"),
        pytest.param("cuda", 7, 7 << 20, False, id="a-number-decides"),
        pytest.param("cuda", 9, 9 << 20, True, id="more-than-there-is"),
    ],
)
def test_how_much_room_there_is(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    device: str,
    asked_mib: int | None,
    expected: int,
    warned: bool,
) -> None:
    """10 MiB are free, of which vision features may take 2."""
    monkeypatch.setattr(vlm, "free_bytes", lambda _: float(10 << 20))
    assert vlm.prompt_bytes(asked_mib, torch.device(device), 2 << 20) == expected
    assert ("8 MiB of memory are free" in caplog.text) is warned
    assert vlm.prompt_bytes(None, torch.device(device), 20 << 20) == 0


def test_the_room_is_chosen_once_the_weights_are_there_and_said(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A GPU is faked by a CPU that says what a GPU would."""
    caplog.set_level("INFO", "lewis_core.models.vlm")
    chosen: list[Any] = []
    monkeypatch.setattr(vlm, "prompt_bytes", lambda *asked: chosen.append(asked) or 5 << 20)
    opened = open_model(world.ref, Runtime(device="cpu", vision_cache_mib=3), world.folder)
    assert chosen == [(None, torch.device("cpu"), 3 << 20)]
    assert opened.prompt_cache().max_bytes == 5 << 20
    assert f"{world.checkpoint}: up to 5 MiB for keys and values of photos" in caplog.text
