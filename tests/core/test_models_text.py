"""Causal language models made in the test: two architectures, with and without a vision tower."""

import math
from pathlib import Path

import pytest
import torch

from lewis_core.config.base import ModelRef, Runtime
from lewis_core.errors import ModelError
from lewis_core.listener.schemas import ChoiceItem, GenerateItem, Question
from lewis_core.models.text import CausalLanguageModel, load_causal_model, open_text_model
from lewis_core.models.vlm import VisionLanguageModel
from lewis_core.testing import write_tiny_checkpoint, write_tiny_language_model

CPU = Runtime(device="cpu", batch_size=4)
PROMPTS = ("Is it red?", "Does this much longer text mention a place, a table for example?", "no")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_language_model(tmp_path_factory.mktemp("lm"))


def asking(*prompts: str) -> list[ChoiceItem]:
    return [ChoiceItem(image=None, questions=(Question(prompt=p, choices=("yes", "no")),)) for p in prompts]


def writing(*prompts: str, **options: float) -> list[GenerateItem]:
    return [GenerateItem(image=None, prompt=p, max_new_tokens=6, **options) for p in prompts]


def test_choices_are_those_of_one_plain_forward_pass(folder: Path) -> None:
    ref = ModelRef(path=str(folder))
    model, tokenizer = load_causal_model(ref, CPU)
    answers = open_text_model(ref, CPU).choose(asking(*PROMPTS))
    for prompt, (answer,) in zip(PROMPTS, answers, strict=True):
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            log_probs = model(**chat).logits[0, -1].log_softmax(-1)
        for choice, found in zip(("yes", "no"), answer.log_probs, strict=True):
            cased = {space + text for text in (choice, choice.title(), choice.upper()) for space in ("", " ")}
            ids = [
                ids[0] for text in sorted(cased) if len(ids := tokenizer.encode(text, add_special_tokens=False)) == 1
            ]
            assert found == pytest.approx(float(log_probs[ids].logsumexp(0)), abs=1e-5)
        assert answer.captured_mass == pytest.approx(sum(map(math.exp, answer.log_probs)), abs=1e-6)


def test_greedy_text_does_not_depend_on_its_neighbours(folder: Path) -> None:
    model = open_text_model(ModelRef(path=str(folder)), CPU)
    together = model.generate(writing(*PROMPTS))
    assert together == [model.generate(writing(prompt))[0] for prompt in PROMPTS]
    assert model.generate(writing(PROMPTS[0], num_return=2))[0] == together[0] * 2


def test_sampled_text_depends_on_its_seed_and_leaves_the_global_state_alone(folder: Path) -> None:
    model = open_text_model(ModelRef(path=str(folder)), CPU)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = (
        model.generate(writing(PROMPTS[0], temperature=1.5, seed=seed, num_return=2))[0] for seed in (1, 1, 9)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first == again
    assert first != other
    assert len(set(first)) == 2


def test_a_chat_s_own_tokens_in_a_text_stay_text(folder: Path) -> None:
    model, tokenizer = load_causal_model(ModelRef(path=str(folder)), CPU)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids = CausalLanguageModel(model, tokenizer)._encode("red<|im_end|>")
    assert ids.count(end) == 1  # the template's own


def test_thinking_is_turned_off(folder: Path) -> None:
    model, tokenizer = load_causal_model(ModelRef(path=str(folder)), CPU)
    tokenizer.chat_template += "{% if enable_thinking is defined and not enable_thinking %}<off>{% endif %}"
    ids = CausalLanguageModel(model, tokenizer)._encode("red")
    assert tokenizer.decode(ids).endswith("<off>")


def test_a_vision_language_model_can_take_its_place(tmp_path: Path) -> None:
    model = open_text_model(ModelRef(path=str(write_tiny_checkpoint(tmp_path)), min_pixels=784), CPU)
    assert isinstance(model, VisionLanguageModel)
    assert len(model.choose(asking("Is it red?"))[0]) == 1


def test_what_cannot_be_loaded_or_asked_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read as a model"):
        open_text_model(ModelRef(path=str(tmp_path)), CPU)
    with pytest.raises(ModelError, match="merge it"):
        load_causal_model(ModelRef(path=str(folder), adapter=tmp_path), CPU)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="pickled weights are not read"):
        open_text_model(ModelRef(path=str(tmp_path)), CPU)
    model = open_text_model(ModelRef(path=str(folder)), CPU)
    with pytest.raises(ModelError, match=r"sees no images.*a\.jpg"):
        model.choose([ChoiceItem(image="a.jpg", questions=asking("?")[0].questions)])
    loaded, tokenizer = load_causal_model(ModelRef(path=str(folder)), CPU)
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        CausalLanguageModel(loaded, tokenizer)
