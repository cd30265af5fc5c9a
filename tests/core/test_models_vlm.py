"""The fast paths against one plain forward per question, on a tiny random model."""

import itertools
import math
from collections import defaultdict

import pytest
import torch

from lewis_core.config.base import ModelRef, Runtime
from lewis_core.errors import ImageError, ModelError
from lewis_core.listener.schemas import ChoiceItem, GenerateItem, Question, ScoreGame
from lewis_core.models import packing, shared_prefix
from lewis_core.models.answers import answer_token_ids, spellings
from lewis_core.models.images import ImageFolder
from lewis_core.models.loading import load_model
from lewis_core.models.shared_prefix import EngineOptions
from lewis_core.models.vlm import VisionLanguageModel
from lewis_core.prompts import CONCISE
from lewis_core.testing import write_image, write_tiny_checkpoint

IMAGES = ("0.jpg", "1.jpg", "wide.jpg", "3.jpg", "4.jpg")
HOW = {"packed": {"packed": True}, "cached": {"packed": False}, "plain": {"engine": "plain"}}
TEXTS = ("A red mug.", "A photo of a bag. The bag is blue, with a star on its left side.", "A red hat.", "x")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for index, name in enumerate(IMAGES):
        write_image(folder / name, index)
    from PIL import Image

    with Image.open(folder / "wide.jpg") as image:
        image.resize((56, 28)).save(folder / "wide.jpg")
    return folder


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def loaded(request, tmp_path_factory):
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), family=request.param)
    return load_model(ModelRef(path=str(folder), min_pixels=784, max_pixels=3136), Runtime(device="cpu"))


@pytest.fixture
def build(loaded, root):
    def build(engine="shared_prefix", **options):
        return VisionLanguageModel(*loaded, CONCISE, ImageFolder(root), engine=engine, options=EngineOptions(**options))

    return build


def plain_inputs(loaded, root, image, text):
    """One question through the processor, as the model's own documentation does it."""
    _, processor = loaded
    content = [{"type": "image"}] * (image is not None) + [{"type": "text", "text": text}]
    chat = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    images = [ImageFolder(root).load(image)] if image is not None else None
    return processor(text=[chat], images=images, return_tensors="pt")


def plain_probabilities(loaded, root, image, text):
    """Softmax over the vocabulary after one plain forward."""
    with torch.no_grad():
        return loaded[0](**plain_inputs(loaded, root, image, text)).logits[0, -1].float().softmax(-1)


@pytest.mark.parametrize("how", HOW)
def test_score_equals_one_plain_forward_per_pair(build, loaded, root, how):
    games = [
        ScoreGame(candidates=IMAGES[:3], descriptions=TEXTS, category="mug"),
        ScoreGame(candidates=IMAGES[2:], descriptions=TEXTS[:2], category="bag"),
    ]
    yes, no = answer_token_ids(loaded[1].tokenizer, ("yes", "no"))
    for game, scores in zip(games, build(**HOW[how]).score(games), strict=True):
        for row, text in enumerate(game.descriptions):
            for column, image in enumerate(game.candidates):
                p = plain_probabilities(loaded, root, image, CONCISE.match(game.category, text))
                p_yes, p_no = p[yes].sum().item(), p[no].sum().item()
                assert scores.yes_probability[row][column] == pytest.approx(p_yes / (p_yes + p_no), abs=1e-5)
                assert scores.yes_log_odds[row][column] == pytest.approx(math.log(p_yes / p_no), abs=1e-5)
                assert scores.captured_mass[row][column] == pytest.approx(p_yes + p_no, abs=1e-5)


def test_images_and_descriptions_matter(build):
    [scores] = build().score([ScoreGame(candidates=IMAGES, descriptions=TEXTS)])
    values = [round(value, 4) for row in scores.yes_log_odds for value in row]
    assert len(set(values)) == len(values)


def test_batched_equals_one_by_one(build):
    games = [ScoreGame(candidates=IMAGES[i : i + 2], descriptions=TEXTS[: 1 + i]) for i in range(4)]
    together = build().score(games)
    for packed, tokens in itertools.product((True, False), (1, 150, 10_000)):
        model = build(packed=packed, batch_tokens=tokens, cache_bytes=0)
        apart = [model.score([game])[0] for game in games]
        for one, other in zip((*together, *together), (*apart, *model.score(games)), strict=True):
            assert torch.tensor(one.yes_log_odds).sub(torch.tensor(other.yes_log_odds)).abs().max() < 1e-5


@pytest.mark.parametrize("how", HOW)
def test_choose_equals_one_plain_forward_per_question(build, loaded, root, how):
    letters, words = ("A", "B", "C"), ("yes", "no")
    items = [
        ChoiceItem(
            image=image, questions=tuple(Question(prompt=text, choices=c) for text in TEXTS for c in (letters, words))
        )
        for image in ("wide.jpg", None, "0.jpg")
    ]
    for item, answers in zip(items, build(**HOW[how]).choose(items), strict=True):
        for question, answer in zip(item.questions, answers, strict=True):
            p = plain_probabilities(loaded, root, item.image, question.prompt)
            ids = answer_token_ids(loaded[1].tokenizer, question.choices)
            expected = [p[tokens].sum().item() for tokens in ids]
            assert [math.exp(value) for value in answer.log_probs] == pytest.approx(expected, abs=1e-5)
            assert answer.captured_mass == pytest.approx(sum(expected), abs=1e-5)


@pytest.mark.parametrize("engine", ["shared_prefix", "plain"])
def test_greedy_completions_equal_plain_generation(build, loaded, root, engine):
    model, processor = loaded
    items = [
        GenerateItem(image=image, prompt=text, max_new_tokens=limit)
        for image, text, limit in (("wide.jpg", "Say.", 9), (None, TEXTS[1], 6), ("0.jpg", TEXTS[1], 9))
    ]
    placeholders = [model.config.image_token_id, model.config.video_token_id]
    for item, [text] in zip(items, build(engine).generate(items), strict=True):
        inputs = plain_inputs(loaded, root, item.image, item.prompt)
        out = model.generate(
            **inputs, do_sample=False, max_new_tokens=item.max_new_tokens, suppress_tokens=placeholders
        )
        assert text == processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_samples_depend_on_seed_and_place_not_on_neighbours(build):
    def item(seed, image="0.jpg", num_return=3):
        return GenerateItem(
            image=image, prompt="Say.", num_return=num_return, max_new_tokens=12, temperature=1.5, seed=seed
        )

    alone = build().generate([item(1)])[0]
    neighbours = [item(2), item(5, "wide.jpg"), item(1), GenerateItem(image=None, prompt="Go.", max_new_tokens=3)]
    crowded = build(batch_size=5).generate(neighbours)
    assert crowded[2] == alone
    assert crowded[0] != alone
    assert len(set(alone)) == 3
    assert build().generate([item(1, num_return=1)])[0] == alone[:1]


def test_sampling_follows_the_model(build, loaded, root):
    # 256 draws of one token: the likeliest text's share lies within 5 standard errors of its probability
    item = GenerateItem(image=None, prompt="Say.", num_return=256, max_new_tokens=1, temperature=1.0)
    [texts] = build(batch_size=256).generate([item])
    p = plain_probabilities(loaded, root, None, "Say.")
    p[[loaded[0].config.image_token_id, loaded[0].config.video_token_id]] = 0
    p_by_text: dict[str, float] = defaultdict(float)  # many a byte alone decodes to the same sign
    for token, value in enumerate((p / p.sum()).tolist()):
        p_by_text[loaded[1].tokenizer.decode([token], skip_special_tokens=True)] += value
    best = max(p_by_text, key=p_by_text.__getitem__)
    error = math.sqrt(p_by_text[best] * (1 - p_by_text[best]) / 256)
    assert abs(texts.count(best) / 256 - p_by_text[best]) < 5 * error


def test_special_tokens_spelled_out_in_a_text_stay_text(build):
    texts = ("<|image_pad|> <|im_end|> a mug", "a mug <|vision_start|><|image_pad|><|vision_end|>")
    [scores] = build().score([ScoreGame(candidates=IMAGES[:2], descriptions=texts)])
    assert all(math.isfinite(value) for row in scores.yes_log_odds for value in row)


def test_each_image_goes_through_the_vision_tower_once(build, loaded):
    seen = []
    hook = loaded[0].model.visual.register_forward_hook(
        lambda module, args, kwargs, out: seen.append(len(kwargs["grid_thw"])), with_kwargs=True
    )
    try:
        model = build()
        games = [ScoreGame(candidates=IMAGES[:3], descriptions=TEXTS)] * 3
        model.score(games)
        assert sum(seen) == 3
        model.score(games)
        assert sum(seen) == 3
        cache = model.vision_cache()
        assert (cache.entries, cache.misses, cache.hits, cache.evictions) == (3, 3, 3, 0)
        assert build("plain").vision_cache() is None
        fresh = build(cache_bytes=1)
        fresh.score(games)
        fresh.score(games)
        assert sum(seen) == 3 + 6
    finally:
        hook.remove()


@pytest.mark.parametrize("how", ["packed", "cached"])
def test_memory_that_runs_out_halves_the_batch(build, monkeypatch, how):
    """Prompts and questions of one to four images: every one that does not fit is cut until it does."""
    games = [ScoreGame(candidates=IMAGES[:4], descriptions=TEXTS)]
    expected = build().score(games)
    name, most, sizes = ("pack", 300, []) if how == "packed" else ("Prefilled", 120, [])
    module = packing if how == "packed" else shared_prefix
    real = getattr(module, name)

    def small(model, work, *rest):
        sizes.append(sum(one.tokens if how == "packed" else len(one.ids) for one in work))
        if sizes[-1] > most:
            raise torch.OutOfMemoryError("out of memory")
        return real(model, work, *rest)

    monkeypatch.setattr(module, name, small)
    model = build(**HOW[how])
    found = model.score(games)
    assert sizes[0] > 1.5 * most
    assert torch.tensor(found[0].yes_log_odds).sub(torch.tensor(expected[0].yes_log_odds)).abs().max() < 1e-5
    sizes.clear()
    model.score(games)
    assert max(sizes) <= most  # the lesson is kept

    most = 0
    with pytest.raises(ModelError, match="does not fit"):
        model.score(games)


def test_broken_images_are_named(build, root):
    (root / "broken.jpg").write_bytes(b"\xff\xd8 nothing")
    write_image(root / "strip.jpg", 1)
    from PIL import Image

    Image.new("RGB", (900, 4)).save(root / "strip.jpg")
    for name in ("broken.jpg", "strip.jpg", "missing.jpg"):
        with pytest.raises(ImageError, match=name):
            build().score([ScoreGame(candidates=("0.jpg", name), descriptions=("x",))])


def test_spellings_of_words_and_letters(loaded):
    assert spellings("yes") == ("yes", " yes", "Yes", " Yes", "YES", " YES")
    assert spellings("A") == ("A", " A")
    tokenizer = loaded[1].tokenizer
    yes, no, letter = answer_token_ids(tokenizer, ("yes", "no", "A"))
    assert {tokenizer.decode([i]) for i in yes} == {"yes", " yes", "Yes", " Yes", "YES", " YES"}
    assert {tokenizer.decode([i]) for i in no} == {"no", " no", "No", " No", "NO", " NO"}
    assert {tokenizer.decode([i]) for i in letter} == {"A", " A"}


def test_long_choices_count_by_their_first_token_if_that_tells_them_apart(loaded):
    tokenizer = loaded[1].tokenizer
    red, blue = answer_token_ids(tokenizer, ("red", "blue"))
    assert {tokenizer.decode([i]) for i in red} == {"r", "R", " R"}
    assert {tokenizer.decode([i]) for i in blue} == {"b", "B", " B"}
    with pytest.raises(ModelError, match="'blue' and 'black' begin with the same token"):
        answer_token_ids(tokenizer, ("blue", "black"))
