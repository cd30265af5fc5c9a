"""The trainer that shares prompts, against stock TRL: the same rows must give the same numbers."""

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import GRPOTrainer

from lewis_core.config.base import ModelRef, Runtime
from lewis_core.config.training import LoraSettings, RewardsConfig, TrainSpeakerConfig
from lewis_core.models.images import ImageFolder
from lewis_core.testing import FakeModel, write_photo_tree, write_tiny_checkpoint
from lewis_core.training.speaker import build_trainer
from lewis_core.training.trainer import SpeakerTrainer

# TRL 1.16 reads an attribute that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing. is deprecated:FutureWarning")
PRIVATE = {
    "_generate_and_score_completions": ["self", "inputs"],
    "_tokenize_prompts": ["self", "prompts"],
    "_generate_single_turn": [
        "self",
        "prompt_ids",
        "images",
        "multimodal_fields",
        "num_generations",
        "has_tool_images",
    ],
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_prepare_inputs": ["self", "generation_batch"],
    "_compute_loss": ["self", "model", "inputs"],
    "_save_checkpoint": ["self", "model", "trial"],
}


@pytest.mark.parametrize("name", PRIVATE)
def test_trl_still_has_the_methods_that_are_overridden(name: str) -> None:
    assert list(inspect.signature(getattr(GRPOTrainer, name)).parameters) == PRIVATE[name]
    assert getattr(SpeakerTrainer, name) is not getattr(GRPOTrainer, name)


def test_trls_log_probabilities_still_have_the_arguments_that_are_read() -> None:
    parameters = list(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)
    wanted = ["self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy"]
    assert parameters[: len(wanted) + 1] == [*wanted, "compute_aux_loss"]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> SpeakerTrainer:
    """Two prompts of different lengths, four completions each, an adapter that is not zero."""
    folder = tmp_path_factory.mktemp("trainer")
    write_tiny_checkpoint(folder / "model")
    write_photo_tree(folder / "data", concepts=2)
    reference = ModelRef(path=str(folder / "model"))
    config = TrainSpeakerConfig(
        model=reference,
        listener=reference,
        lora=LoraSettings(r=4, alpha=8),
        rewards=RewardsConfig(),
        max_steps=1,
        prompts_per_step=2,
        num_generations=4,
        max_new_tokens=12,
        beta=0.1,
        gradient_checkpointing=False,
    )
    rows = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": text}],
                "query": f"train/{category}/{category[0]}00/0.jpg",
                "candidates": ["a", "b"],
                "target_index": 0,
                "category_word": category,
            }
            for category, text in (("bag", "Describe the bag."), ("mug", "Describe this mug in few words."))
        ]
    )
    runtime = Runtime(device="cpu", torch_threads=1)
    trainer = build_trainer(rows, FakeModel(), folder / "work", config, folder / "data", runtime)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    trainer.data_folder = folder / "data"
    return trainer


@pytest.fixture(scope="module")
def batch(trainer: SpeakerTrainer) -> SimpleNamespace:
    rows = next(iter(trainer.get_train_dataloader()))
    return SimpleNamespace(rows=rows, inputs=trainer._prepare_inputs(rows))


def test_groups_stay_whole_and_completions_differ(batch: SimpleNamespace) -> None:
    assert batch.inputs["prompt_of_row"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    texts = {tuple(row) for row in batch.inputs["completion_ids"].tolist()}
    assert len(texts) == 8


def test_prompts_are_tokenized_as_the_processor_does(trainer: SpeakerTrainer, batch: SimpleNamespace) -> None:
    images = ImageFolder(trainer.data_folder)
    for row, number in ((0, 0), (7, 1)):
        content = [
            {"type": "image", "image": images.load(batch.rows[row]["query"])},
            {"type": "text", "text": batch.rows[row]["prompt"][0]["content"]},
        ]
        expected = trainer.processing_class.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
        )
        assert trainer._prompts[number].ids == expected["input_ids"][0]


def stock_arguments(trainer: SpeakerTrainer, batch: SimpleNamespace) -> dict[str, Any]:
    """What stock TRL would have been given for the same rows: pixels, once for every completion."""
    images = ImageFolder(trainer.data_folder)
    pixels = trainer.processing_class.image_processor(
        images=[images.load(row["query"]) for row in batch.rows], return_tensors="pt"
    )
    ids = torch.cat([batch.inputs["prompt_ids"], batch.inputs["completion_ids"]], 1)
    return {
        "pixel_values": pixels["pixel_values"],
        "image_grid_thw": pixels["image_grid_thw"],
        "num_images": [1] * len(ids),
        "mm_token_type_ids": (ids == trainer.model.config.image_token_id).long(),
    }


def test_log_probabilities_entropies_loss_and_gradients_equal_stock_trl(
    trainer: SpeakerTrainer, batch: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, extra = SpeakerTrainer._get_per_token_logps_and_entropies, stock_arguments(trainer, batch)
    inputs = {**batch.inputs, "advantages": torch.linspace(-1, 1, 8)}
    results = {}
    for name in ("stock", "shared"):
        kept: list[torch.Tensor] = []

        def method(
            self: Any, model: Any, *arguments: Any, _name: str = name, _kept: Any = kept, **keywords: Any
        ) -> Any:
            function = shared if _name == "shared" else GRPOTrainer._get_per_token_logps_and_entropies
            out = function(self, model, *arguments, **{**keywords, **(extra if _name == "stock" else {})})
            _kept.extend(value.detach() for value in out[:2])
            return out

        monkeypatch.setattr(SpeakerTrainer, "_get_per_token_logps_and_entropies", method)
        trainer.model.zero_grad()
        loss = trainer._compute_loss(trainer.model, inputs)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
        results[name] = (loss.item(), gradient, kept)
    mask = batch.inputs["completion_mask"].bool()
    for stock_values, shared_values in zip(results["stock"][2], results["shared"][2], strict=True):
        torch.testing.assert_close(stock_values[mask], shared_values[mask], atol=2e-5, rtol=0)
    assert results["shared"][0] == pytest.approx(results["stock"][0], abs=1e-6)
    difference = (results["stock"][1] - results["shared"][1]).norm() / results["stock"][1].norm()
    assert difference < 1e-4
    assert results["stock"][1].norm() > 1e-3  # there is something to compare


def test_rollouts_follow_the_policy(trainer: SpeakerTrainer, batch: SimpleNamespace) -> None:
    """Greedy continuation by a plain forward pass equals the sampler at a temperature near 0."""
    trainer.temperature, temperature = 1e-6, trainer.temperature
    try:
        ids = [trainer._prompts[number].ids for number in (0, 0, 0, 0, 1, 1, 1, 1)]
        trainer._prompt_of_row = [0, 0, 0, 0, 1, 1, 1, 1]
        completions, _ = trainer._generate_single_turn(ids, None, {}, 4)
    finally:
        trainer.temperature = temperature
    pixels = stock_arguments(trainer, batch)
    patches = len(pixels["pixel_values"]) // 8
    for row in (0, 4):
        sequence = list(ids[row])
        for token in completions[row]:
            with torch.no_grad():
                logits = trainer.model(
                    input_ids=torch.tensor([sequence]),
                    pixel_values=pixels["pixel_values"][row * patches : (row + 1) * patches],
                    image_grid_thw=pixels["image_grid_thw"][row : row + 1],
                    mm_token_type_ids=(torch.tensor([sequence]) == trainer._image_token).long(),
                ).logits[0, -1]
            logits[trainer._banned] = -torch.inf
            assert int(logits.argmax()) == token
            sequence.append(token)


def test_a_batch_that_tears_groups_apart_is_refused(trainer: SpeakerTrainer) -> None:
    trainer.args.per_device_train_batch_size, size = 6, trainer.args.per_device_train_batch_size
    try:
        with pytest.raises(ValueError, match="multiple of num_generations"):
            trainer.check_groups()
    finally:
        trainer.args.per_device_train_batch_size = size


def test_samples_show_completions_with_their_rewards(trainer: SpeakerTrainer, batch: SimpleNamespace) -> None:
    samples = trainer.samples()
    assert len(samples) == 8
    assert set(samples[0]) >= {"completion", "listener", "format", "length", "repetition", "advantage", "target_index"}


def test_no_vision_weight_is_trained(trainer: SpeakerTrainer) -> None:
    names = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    assert names
    assert all("language_model" in name and "lora_" in name for name in names)
    assert not Path(trainer.args.output_dir).exists() or not list(Path(trainer.args.output_dir).glob("checkpoint-*"))
