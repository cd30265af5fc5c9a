"""The trainer that shares prompts, against stock TRL: the same rows must give the same numbers."""

import inspect
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import GRPOTrainer

from lewis_core.config.base import ModelRef, Runtime
from lewis_core.config.training import LoraSettings, RewardsConfig, TrainSpeakerConfig
from lewis_core.models import wide_products
from lewis_core.testing import FakeModel, write_photo_tree, write_tiny_checkpoint
from lewis_core.training.shared_prefix import SharedPrefixTrainer
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
    "_run_epoch": [
        "self",
        "model",
        "epoch",
        "train_dataloader",
        "steps_in_epoch",
        "num_update_steps_per_epoch",
        "trial",
        "ignore_keys_for_eval",
        "start_time",
        "resume_from_checkpoint",
        "epochs_trained",
        "steps_trained_in_current_epoch",
    ],
    "_save_checkpoint": ["self", "model", "trial"],
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
}


@pytest.mark.parametrize("name", PRIVATE)
def test_trl_still_has_the_methods_that_are_overridden(name: str) -> None:
    assert list(inspect.signature(getattr(GRPOTrainer, name)).parameters) == PRIVATE[name]
    assert getattr(SpeakerTrainer, name) is not getattr(GRPOTrainer, name)


def test_trls_log_probabilities_still_have_the_arguments_that_are_read() -> None:
    parameters = list(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)
    wanted = ["self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy"]
    assert parameters[: len(wanted) + 1] == [*wanted, "compute_aux_loss"]


def build(reference: ModelRef, folder: Path, **changes: Any) -> Any:
    """A trainer of a model, with photos below a folder."""
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
        **changes,
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
    return build_trainer(rows, FakeModel(), folder / "work", config, folder / "data", runtime)


@pytest.fixture(autouse=True)
def small_products_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models would never ask for those that large ones ask for."""
    monkeypatch.setattr(wide_products, "LEAST_WEIGHT", 0)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> SharedPrefixTrainer:
    """Two prompts of different lengths, four completions each, an adapter that is not zero."""
    folder = tmp_path_factory.mktemp("trainer")
    write_tiny_checkpoint(folder / "model")
    write_photo_tree(folder / "data", concepts=2)
    trainer = build(ModelRef(path=str(folder / "model")), folder)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


@pytest.fixture(scope="module")
def batch(trainer: SharedPrefixTrainer) -> SimpleNamespace:
    rows = next(iter(trainer.get_train_dataloader()))
    return SimpleNamespace(rows=rows, inputs=trainer._prepare_inputs(rows))


def test_groups_stay_whole_and_completions_differ(batch: SimpleNamespace) -> None:
    assert batch.inputs["prompt_of_row"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    texts = {tuple(row) for row in batch.inputs["completion_ids"].tolist()}
    assert len(texts) == 8


def test_prompts_are_tokenized_as_the_processor_does(trainer: SharedPrefixTrainer, batch: SimpleNamespace) -> None:
    for row, number in ((0, 0), (7, 1)):
        content = [
            {"type": "image", "image": trainer._load(batch.rows[row]["query"])},
            {"type": "text", "text": batch.rows[row]["prompt"][0]["content"]},
        ]
        expected = trainer.processing_class.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
        )
        assert trainer._prompts[number].ids == expected["input_ids"][0]


def loss_by(trainer: SharedPrefixTrainer, inputs: dict[str, Any], engine: Any) -> SimpleNamespace:
    """Loss, gradient, log-probabilities and entropies; the log-probabilities come from a class's method."""
    kept: list[torch.Tensor] = []

    def method(*arguments: Any, **keywords: Any) -> Any:
        out = engine._get_per_token_logps_and_entropies(trainer, *arguments, **keywords)
        kept.extend(value.detach() for value in out[:2])
        return out

    trainer._get_per_token_logps_and_entropies = method
    try:
        trainer.model.zero_grad()
        loss = trainer._compute_loss(trainer.model, inputs)
        loss.backward()
    finally:
        del trainer._get_per_token_logps_and_entropies
    gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
    return SimpleNamespace(loss=loss.item(), gradient=gradient, logps=kept[0], entropies=kept[1])


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", ["dapo", "dr_grpo", "grpo", "bnpo"])
def test_log_probabilities_entropies_loss_and_gradients_equal_stock_trl(
    trainer: SharedPrefixTrainer,
    batch: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    loss_type: str,
    level: str,
    beta: float,
) -> None:
    for name, value in (("loss_type", loss_type), ("importance_sampling_level", level), ("beta", beta)):
        monkeypatch.setattr(trainer, name, value)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(batch.inputs["completion_ids"].shape, generator=generator) * 0.1
    old = batch.inputs["ref_per_token_logps"] + noise  # rollouts of an older policy: ratios differ from 1
    inputs = {**batch.inputs, "advantages": torch.linspace(-1, 1, 8), "old_per_token_logps": old}
    stock, shared = (loss_by(trainer, inputs, engine) for engine in (SpeakerTrainer, SharedPrefixTrainer))
    mask = batch.inputs["completion_mask"].bool()
    torch.testing.assert_close(stock.logps[mask], shared.logps[mask], atol=2e-5, rtol=0)
    torch.testing.assert_close(stock.entropies[mask], shared.entropies[mask], atol=2e-5, rtol=0)
    assert shared.loss == pytest.approx(stock.loss, abs=1e-6)
    assert (stock.gradient - shared.gradient).norm() / stock.gradient.norm() < 1e-4
    assert stock.gradient.norm() > 1e-4  # there is something to compare


def test_reading_in_parts_changes_nothing(
    trainer: SharedPrefixTrainer, batch: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.cat([batch.inputs["prompt_ids"], batch.inputs["completion_ids"]], 1)
    mask = torch.cat([batch.inputs["prompt_mask"], batch.inputs["completion_mask"]], 1)
    trainer._prompt_of_row = [0, 0, 0, 0, 1, 1, 1, 1]
    found, sizes, read = [], [], trainer._read

    def short_of_memory(model: Any, groups: Any) -> Any:
        sizes.append(sum(group.tokens for group in groups))
        if sizes[-1] > 100:
            raise torch.OutOfMemoryError("simulated")
        return read(model, groups)

    for method in (read, short_of_memory):
        monkeypatch.setattr(trainer, "_read", method)
        with torch.no_grad():
            found.append(trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, 12, compute_entropy=True))
    assert sizes[0] > 100
    assert len([size for size in sizes if size <= 100]) > 1
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-5, rtol=0)


def test_rollouts_follow_the_policy(trainer: SharedPrefixTrainer, batch: SimpleNamespace) -> None:
    """Greedy continuation by a plain forward pass equals the sampler at a temperature near 0."""
    trainer.temperature, temperature = 1e-6, trainer.temperature
    try:
        ids = [trainer._prompts[number].ids for number in (0, 0, 0, 0, 1, 1, 1, 1)]
        trainer._prompt_of_row = [0, 0, 0, 0, 1, 1, 1, 1]
        completions, _ = trainer._generate_single_turn(ids, None, {}, 4)
    finally:
        trainer.temperature = temperature
    pixels = [trainer._pixels([trainer._queries[number]]) for number in (0, 1)]
    for row in (0, 4):
        sequence = list(ids[row])
        for token in completions[row]:
            with torch.no_grad():
                logits = trainer.model(
                    input_ids=torch.tensor([sequence]),
                    **pixels[row // 4],
                    mm_token_type_ids=(torch.tensor([sequence]) == trainer._image_token).long(),
                ).logits[0, -1]
            logits[[trainer.model.config.image_token_id, trainer.model.config.video_token_id]] = -torch.inf
            assert int(logits.argmax()) == token
            sequence.append(token)


def test_rollouts_of_trl_see_the_photos(trainer: SharedPrefixTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What vLLM or ZeRO-3 would fall back to, at a temperature near 0, equals the sampler."""
    for name, value in (("temperature", 1e-6), ("_prompt_of_row", [0] * 4 + [1] * 4)):
        monkeypatch.setattr(trainer, name, value)
    monkeypatch.setattr(trainer, "generation_config", deepcopy(trainer.generation_config))
    trainer.generation_config.do_sample = False
    trainer.generation_config.temperature = 1.0
    trainer.generation_config.suppress_tokens = [
        trainer.model.config.image_token_id,
        trainer.model.config.video_token_id,
    ]
    ids = [trainer._prompts[number].ids for number in trainer._prompt_of_row]
    ours, _ = trainer._generate_single_turn(ids, None, {}, 4)
    monkeypatch.setattr(trainer, "_writes_itself", False)
    theirs, _ = trainer._generate_single_turn(ids, None, {}, 4)
    assert ours == theirs


def test_an_update_that_runs_out_of_memory_is_repeated_with_checkpointing(
    trainer: SharedPrefixTrainer, batch: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients, compute = [], trainer._compute_loss
    batch.inputs["advantages"] = torch.linspace(-1, 1, 8)
    trainer._buffered_inputs = [batch.inputs]

    def short_of_memory(model: Any, inputs: Any) -> Any:
        loss = compute(model, inputs)
        if not model.is_activation_checkpointing:
            loss.backward()  # part of the gradient is there already
            raise torch.OutOfMemoryError("simulated")
        return loss

    for method in (compute, short_of_memory):
        monkeypatch.setattr(trainer, "_compute_loss", method)
        monkeypatch.setattr(trainer, "_may_checkpoint", method is short_of_memory)
        monkeypatch.setattr(trainer, "_step", 0)
        monkeypatch.setattr(trainer, "_generated_at", 0)
        trainer.model.zero_grad()
        trainer.training_step(trainer.model, batch.rows)
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]))
    assert trainer.model.is_activation_checkpointing
    trainer.model.activation_checkpointing_disable()
    trainer.args.gradient_checkpointing = False
    assert gradients[0].norm() > 1e-4
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)


def test_samples_show_completions_with_their_rewards(trainer: SharedPrefixTrainer, batch: SimpleNamespace) -> None:
    samples = trainer.samples()
    assert len(samples) == 8
    assert set(samples[0]) >= {"completion", "listener", "format", "length", "repetition", "advantage", "target_index"}
    assert isinstance(samples[0]["hacks"], float) and isinstance(samples[0]["noticed"], str)


def test_no_vision_weight_is_trained(trainer: SharedPrefixTrainer) -> None:
    names = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    assert names
    assert all("language_model" in name and "lora_" in name for name in names)
    assert not Path(trainer.args.output_dir).exists() or not list(Path(trainer.args.output_dir).glob("checkpoint-*"))


def test_the_reference_of_full_finetuning_is_of_the_models_own_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub's cache with two revisions of a model, of which another one is the newest."""
    cache, commits = tmp_path / "cache", ["a" * 40, "b" * 40]
    for seed, commit in enumerate(commits):
        write_tiny_checkpoint(cache / "models--lewis--tiny" / "snapshots" / commit, seed=seed)
    (cache / "models--lewis--tiny" / "refs").mkdir()
    (cache / "models--lewis--tiny" / "refs" / "main").write_text(commits[1])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    write_photo_tree(tmp_path / "data", concepts=2)
    trainer = build(ModelRef(path="lewis/tiny", revision=commits[0]), tmp_path, full_finetuning=True)
    theirs = trainer.ref_model.state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in trainer.model.state_dict().items())


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_a_pass_whose_completions_are_all_masked_teaches_nothing(
    trainer: SharedPrefixTrainer, batch: SimpleNamespace, beta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All were cut off, and training.mask_truncated_completions is on."""
    monkeypatch.setattr(trainer, "beta", beta)
    inputs = batch.inputs | {"completion_mask": torch.zeros_like(batch.inputs["completion_mask"])}
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    assert loss.item() == 0.0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in trained)
    trainer.model.zero_grad()
