"""The plain engine: the same answers as the fast one, and models that the fast one does not know."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lewis_core.config.base import ModelRef, Runtime
from lewis_core.errors import ImageError, ModelError
from lewis_core.listener.schemas import ChoiceItem, GenerateItem, Question, ScoreGame
from lewis_core.models.answers import answer_token_ids
from lewis_core.models.images import ImageFolder
from lewis_core.models.loading import load_model
from lewis_core.models.vlm import VisionLanguageModel
from lewis_core.prompts import CONCISE
from lewis_core.testing import write_image, write_tiny_checkpoint


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed, name in enumerate(("a.jpg", "b.jpg")):
        write_image(folder / name, seed, size=56)
    return folder


def llava(folder: Path) -> Path:
    """A random checkpoint of another family: LLaVA, with a CLIP tower that sees 28 x 28 pixels as 4 tokens."""
    from transformers import AutoConfig, AutoModelForImageTextToText, CLIPImageProcessor, LlavaProcessor

    load: Any = AutoModelForImageTextToText
    tokenizer = load_model(ModelRef(path=str(write_tiny_checkpoint(folder / "qwen"))), Runtime(device="cpu"))[
        1
    ].tokenizer
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    text = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, initializer_range=0.5,
    )  # fmt: skip
    vision = AutoConfig.for_model(
        "clip_vision_model", hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        image_size=28, patch_size=14, initializer_range=0.5,
    )  # fmt: skip
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    config = AutoConfig.for_model(
        "llava", text_config=text, vision_config=vision, image_token_id=image_token, vision_feature_layer=-1
    )
    torch.manual_seed(0)
    model = load.from_config(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder / "llava")
    size = {"height": 28, "width": 28}
    processor: Any = LlavaProcessor(
        image_processor=CLIPImageProcessor(size=size, crop_size=size),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template="{% for m in messages %}{% for part in m['content'] %}{% if part['type'] == 'image' %}<image>"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %} ASSISTANT:",
    )
    processor.save_pretrained(folder / "llava")
    return folder / "llava"


def opened(folder: Path, root: Path, engine: str = "plain") -> tuple[VisionLanguageModel, Any, Any]:
    ref = ModelRef(path=str(folder), engine=engine, min_pixels=784, max_pixels=3136)
    model, processor = load_model(ref, Runtime(device="cpu"))
    return VisionLanguageModel(model, processor, CONCISE, ImageFolder(root), engine=engine), model, processor


def test_other_architectures_run_plainly(tmp_path: Path, root: Path) -> None:
    folder = llava(tmp_path)
    with pytest.raises(ModelError, match=r"'llava'; supported are Qwen2-VL .* engine = 'plain'"):
        load_model(ModelRef(path=str(folder)), Runtime(device="cpu"))
    answering, model, processor = opened(folder, root)
    image = ImageFolder(root).load("b.jpg")

    def logits(text: str, images: Any) -> torch.Tensor:
        with torch.no_grad():
            out: torch.Tensor = model(**processor(text=[text], images=images, return_tensors="pt")).logits[0, -1]
        return out

    ids = answer_token_ids(processor.tokenizer, ("yes", "no"))
    for reference, placeholder, images in (("b.jpg", "<image>", [image]), (None, "", None)):
        question = Question(prompt="Is it red?", choices=("yes", "no"))
        [[answer]] = answering.choose([ChoiceItem(image=reference, questions=(question,))])
        p = logits(f"{placeholder}Is it red? ASSISTANT:", images).softmax(-1)
        assert [math.exp(x) for x in answer.log_probs] == pytest.approx([p[i].sum().item() for i in ids], abs=1e-5)

    [[text]] = answering.generate([GenerateItem(image="b.jpg", prompt="Say.", max_new_tokens=4)])
    so_far = "<image>Say. ASSISTANT:"
    written: list[int] = []
    for _ in range(4):
        inputs = processor(text=[so_far], images=[image], return_tensors="pt")
        more = torch.tensor([written], dtype=torch.long)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], more], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.no_grad():
            out = model(**inputs).logits[0, -1]
        out[model.config.image_token_id] = -torch.inf
        written.append(int(out.argmax()))
    assert text == processor.tokenizer.decode(written, skip_special_tokens=True)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("plain"))


def test_samples_are_those_of_the_fast_engine(tiny: Path, root: Path, tmp_path: Path) -> None:
    """The same seeds give the same texts, whatever sampling defaults the checkpoint has."""
    shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)
    items = [
        GenerateItem(image=image, prompt="Say.", num_return=3, max_new_tokens=8, temperature=1.3, seed=4)
        for image in ("a.jpg", None)
    ]
    model, loaded, _ = opened(tmp_path, root)
    loaded.generation_config.repetition_penalty, loaded.generation_config.top_k = 3.0, 2
    found = model.generate(items)
    assert found == opened(tiny, root, "shared_prefix")[0].generate(items)
    assert len({text for texts in found for text in texts}) == 6


def test_special_tokens_spelled_out_in_a_text_stay_text(tiny: Path, root: Path) -> None:
    game = ScoreGame(candidates=("a.jpg",), descriptions=("<|image_pad|> <|im_end|> a mug",))
    plain, fast = (opened(tiny, root, engine)[0].score([game])[0] for engine in ("plain", "shared_prefix"))
    assert plain.yes_log_odds[0][0] == pytest.approx(fast.yes_log_odds[0][0], abs=1e-4)


def test_what_cannot_be_used_is_named(tiny: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    model, loaded, _ = opened(tiny, root)
    Image.new("RGB", (900, 4)).save(root / "strip.png")
    with pytest.raises(ImageError, match=r"strip\.png.*longer than"):
        model.score([ScoreGame(candidates=("strip.png",), descriptions=("x",))])

    def never(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(loaded, "forward", never)
    with pytest.raises(ModelError, match="does not fit"):
        model.score([ScoreGame(candidates=("a.jpg",), descriptions=("x",))])
