"""The shipped checkpoints: plain Auto classes load them, and they know their world."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from lewis_core.pocket import MODELS_DIR
from lewis_core.pocket.language import join_description, render_coarse, sentences
from lewis_core.pocket.render import render
from lewis_core.pocket.tasks import TASKS
from lewis_core.pocket.training.assets import TAGS, build_model_config
from lewis_core.pocket.training.encoding import GROUPS, ExerciseEncoder, build_step
from lewis_core.pocket.training.measure import area_under_curve
from lewis_core.pocket.training.stream import stream_facts, stream_item
from lewis_core.pocket.training.twin import QwenTwin
from lewis_core.pocket.world import IDENTITY_KEYS, Facts, Identity, Scene, change_facts, photo_facts
from lewis_core.prompts import CONCISE, LETTERS
from lewis_core.seeding import stable_rng

UNSEEN = 991
TOKENIZER = MODELS_DIR / "base" / "tokenizer.json"


class Loaded:
    """A checkpoint as its users load it."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.processor: Any = AutoProcessor.from_pretrained(folder)
        self.model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()

    def batch(self, prompts: list[str], images: list[Image.Image]) -> Any:
        """Encode one prompt and photo a row."""
        content = [{"type": "image"}, {"type": "text", "text": ""}]
        texts = []
        for prompt in prompts:
            content[1]["text"] = prompt
            turns = [{"role": "user", "content": content}]
            texts.append(self.processor.apply_chat_template(turns, add_generation_prompt=True))
        return self.processor(text=texts, images=images, padding=True, return_tensors="pt")

    @torch.no_grad()
    def logits(self, prompts: list[str], images: list[Image.Image], answers: str | tuple[str, ...]) -> Tensor:
        """Return the logits ``(rows, answers)`` of what comes next."""
        ids = [self.processor.tokenizer.encode(answer)[0] for answer in answers]
        logits: Tensor = self.model(**self.batch(prompts, images)).logits[:, -1, ids]
        return logits


@pytest.fixture(scope="module", params=["base", "listener"])
def checkpoint(request: pytest.FixtureRequest) -> Loaded:
    return Loaded(MODELS_DIR / request.param)


def describe(facts: Facts) -> str:
    text = " ".join(sentences(key, facts[key], facts["category"])[0] for key in IDENTITY_KEYS)
    return join_description(render_coarse(facts["category"]), text)


def look_alike(identity: Identity, scene: Scene, seed: int) -> Facts:
    return photo_facts(change_facts(stable_rng(seed, "change"), identity, ["color", "part"]), scene)


def test_yes_no_and_letters_are_single_tokens() -> None:
    encoder = ExerciseEncoder(TOKENIZER)
    for word in ("yes", "no", "Yes", "No", " yes", " no", " Yes", " No", *LETTERS, *(f" {c}" for c in "ABCDEF")):
        assert len(encoder.encode(word)) == 1, word
    for tag in (*TAGS, "<|image_pad|>", "<|im_start|>"):
        assert len(encoder.encode(tag)) == 1, tag


@pytest.mark.parametrize("text", ["", "Ein Becher, 12 €!\n\tΩ ☕ 漢字 \U0001f600", "<coarse>A photo of a mug</coarse>"])
def test_any_text_survives_the_tokenizer(text: str) -> None:
    encoder = ExerciseEncoder(TOKENIZER)
    assert encoder.tokenizer.decode(encoder.encode(text), skip_special_tokens=False) == text


def test_all_checkpoints_share_the_vocabulary() -> None:
    vocabularies = [ExerciseEncoder(MODELS_DIR / n / "tokenizer.json").tokenizer for n in ("base", "listener", "clip")]
    assert vocabularies[0].get_vocab() == vocabularies[1].get_vocab() == vocabularies[2].get_vocab()


def test_listener_is_another_model_than_the_base() -> None:
    base, listener = (load_file(MODELS_DIR / name / "model.safetensors") for name in ("base", "listener"))
    assert sum(t.numel() for t in base.values()) > 1.5 * sum(t.numel() for t in listener.values())
    assert sum(file.stat().st_size for file in MODELS_DIR.rglob("*") if file.is_file()) < 20e6


def test_checkpoint_tells_true_descriptions_from_false_ones(checkpoint: Loaded) -> None:
    prompts, images = [], []
    for index in range(16):
        identity, scene = stream_item(UNSEEN, index)
        images += [render(identity, scene)] * 2
        for facts in (photo_facts(identity, scene), look_alike(identity, scene, index)):
            prompts.append(CONCISE.match(identity.category, describe(facts)))
    logits = checkpoint.logits(prompts, images, ("yes", "no"))
    truth = torch.tensor([True, False] * 16)
    assert area_under_curve(logits[:, 0] - logits[:, 1], truth) > 0.9


def test_checkpoint_chooses_the_right_letter(checkpoint: Loaded) -> None:
    prompts, images, answers = [], [], []
    for index in range(16):
        identity, scene = stream_item(UNSEEN, index)
        options = [describe(look_alike(identity, scene, index + 100 * n)) for n in range(2)]
        answers.append(index % 3)
        options.insert(answers[-1], describe(photo_facts(identity, scene)))
        prompts.append(CONCISE.identification(identity.category, options))
        images.append(render(identity, scene))
    best = checkpoint.logits(prompts, images, "ABC").argmax(1)
    assert (best == torch.tensor(answers)).float().mean() >= 0.6


def test_base_describes_in_the_asked_form() -> None:
    base, (identity, scene) = Loaded(MODELS_DIR / "base"), stream_item(UNSEEN, 0)
    batch = base.batch([CONCISE.speaker(identity.category)], [render(identity, scene)])
    out = base.model.generate(**batch, max_new_tokens=96, do_sample=False)[:, batch["input_ids"].shape[1] :]
    text = base.processor.batch_decode(out, skip_special_tokens=True)[0]
    assert f"<coarse>{render_coarse(identity.category)}</coarse> <detailed>" in text
    assert text.endswith("</detailed>")


def test_clip_finds_the_photo_of_a_description() -> None:
    import open_clip

    folder = f"local-dir:{MODELS_DIR / 'clip'}"
    model, _, preprocess = open_clip.create_model_and_transforms(folder)
    items = [stream_item(UNSEEN, index) for index in range(12)]
    images = torch.stack([preprocess(render(*item)) for item in items])  # type: ignore[operator]
    texts = open_clip.get_tokenizer(folder)([describe(photo_facts(*item)) for item in items])
    with torch.no_grad():
        similarity = model.eval().encode_text(texts, normalize=True) @ model.encode_image(images, normalize=True).T
    assert (similarity.argmax(1) == torch.arange(12)).float().mean() >= 0.75


def test_twin_gives_the_logits_of_transformers(checkpoint: Loaded) -> None:
    size = "m" if checkpoint.model.config.text_config.hidden_size == 192 else "s"
    encoder = ExerciseEncoder(TOKENIZER)
    twin = QwenTwin(build_model_config(encoder.tokenizer.get_vocab(), size)).eval()
    missing = twin.load_state_dict(checkpoint.model.state_dict(), strict=False)
    assert missing.missing_keys == []
    identity, scene = stream_item(UNSEEN, 1)
    image, prompt = render(identity, scene), CONCISE.match(identity.category, "It has no logo.")
    batch = checkpoint.batch([prompt], [image])
    assert batch["input_ids"][0].tolist() == encoder.head_with_image + encoder.encode(prompt) + encoder.middle
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    with torch.no_grad():
        ours = twin.logits(twin.read(batch["input_ids"], twin.see(pixels)))
        theirs = checkpoint.model(**batch).logits
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)


def test_training_steps_have_a_fixed_shape() -> None:
    encoder = ExerciseEncoder(TOKENIZER)
    steps = [
        build_step(encoder, stable_rng(seed, "step"), lambda i: stream_facts(1, i), (0, 50), 8, 0.05) for seed in (0, 1)
    ]
    for name, group in GROUPS.items():
        first, second = (step.groups[name] for step in steps)
        assert [array.shape for array in first] == [array.shape for array in second]
        assert first.ids.shape[1] == group.length
        supervised = first.weights > 0
        assert (first.ids.reshape(-1)[first.positions[supervised] + 1] == first.targets[supervised]).all()
    assert {task for group in GROUPS.values() for task in group.rows_by_task} == set(TASKS)
