"""Training on a GPU: the shared-prefix trainer against TRL's own way, mixed precision, real memory limits.

Runs where torch finds a GPU: ``python -m pytest --noconftest tests/gpu -q``.
"""

import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one process takes one GPU; to be said before torch looks

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("trl")
from datasets import Dataset

from lewis_core.config.base import ModelRef, Runtime
from lewis_core.config.training import LoraSettings, TrainSpeakerConfig
from lewis_core.reporting import NullReporter
from lewis_core.testing import FakeModel, write_photo_tree, write_tiny_checkpoint
from lewis_core.training.shared_prefix import SharedPrefixTrainer
from lewis_core.training.speaker import build_trainer, train_on_rows
from lewis_core.training.trainer import SpeakerTrainer

DEVICE: Any = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing(_enable|_disable)?. is deprecated:FutureWarning"),
]


class World:
    """A model of random weights, photos, and rows about them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_tiny_checkpoint(folder / "model", hidden_size=256)
        write_photo_tree(folder / "data", concepts=2)
        texts = {"bag": "Describe the bag.", "mug": "Describe this mug in few words."}
        self.rows = Dataset.from_list(
            [
                {
                    "prompt": [{"role": "user", "content": texts[category]}],
                    "query": f"train/{category}/{category[0]}0{concept}/0.jpg",
                    "candidates": ["a", "b"],
                    "target_index": 0,
                    "category_word": category,
                }
                for category in texts
                for concept in range(2)
            ]
        )

    def config(self, dtype: str, **changes: Any) -> TrainSpeakerConfig:
        """Settings of a short run."""
        model = ModelRef(path=str(self.folder / "model"), dtype=dtype, engine=changes.pop("engine", "shared_prefix"))
        settings = {"max_steps": 2, "prompts_per_step": 4, "num_generations": 4, "max_new_tokens": 12, "beta": 0.1}
        settings |= {"lora": LoraSettings(r=4, alpha=8), "learning_rate": 1e-2, "warmup_steps": 0, **changes}
        return TrainSpeakerConfig(model=model, listener=model, **settings)

    def trainer(self, dtype: str, **changes: Any) -> Any:
        """A trainer whose adapter is not zero."""
        config, runtime = self.config(dtype, **changes), Runtime(device=DEVICE)
        work = self.folder / f"work-{dtype}-{len(list(self.folder.iterdir()))}"
        trainer: Any = build_trainer(self.rows, FakeModel(), work, config, self.folder / "data", runtime)
        generator = torch.Generator().manual_seed(0)
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.data = (torch.randn(parameter.shape, generator=generator) * 0.05).to(parameter)
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        return trainer


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("training"))


@pytest.fixture(autouse=True)
def exact_products() -> None:
    """No TF32, so that float32 can be compared."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def losses(trainer: Any, inputs: dict[str, Any]) -> dict[str, SimpleNamespace]:
    """Loss, gradient and log-probabilities by TRL's way and by ours."""
    found = {}
    for name, engine in (("stock", SpeakerTrainer), ("shared", SharedPrefixTrainer)):
        kept: list[Any] = []

        def method(*arguments: Any, _engine: Any = engine, _kept: list[Any] = kept, **keywords: Any) -> Any:
            out = _engine._get_per_token_logps_and_entropies(trainer, *arguments, **keywords)
            _kept.append(out[0].detach())
            return out

        trainer._get_per_token_logps_and_entropies = method
        trainer.model.zero_grad()
        loss = trainer._compute_loss(trainer.model, inputs)
        loss.backward()
        del trainer._get_per_token_logps_and_entropies
        gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]).float()
        found[name] = SimpleNamespace(loss=loss.item(), gradient=gradient, logps=kept[0])
    return found


@pytest.mark.parametrize(
    ("dtype", "of_logps", "of_gradients"), [("float32", 1e-5, 1e-3), ("bfloat16", 0.06, 0.2)], ids=["f32", "bf16"]
)
def test_log_probabilities_loss_and_gradients_equal_trl(
    world: World, dtype: str, of_logps: float, of_gradients: float
) -> None:
    trainer = world.trainer(dtype)
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    inputs["advantages"] = torch.linspace(-1, 1, 16, device=DEVICE)
    found = losses(trainer, inputs)
    mask = inputs["completion_mask"].bool()
    assert (found["stock"].logps - found["shared"].logps)[mask].abs().mean() < of_logps
    difference = (found["stock"].gradient - found["shared"].gradient).norm() / found["stock"].gradient.norm()
    assert difference < of_gradients
    assert found["shared"].loss == pytest.approx(found["stock"].loss, abs=10 * of_logps)


def test_rollouts_equal_those_of_trl_where_nothing_is_drawn(world: World) -> None:
    trainer = world.trainer("float32")
    trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.temperature = 1e-6
    config = trainer.model.config
    trainer.generation_config.update(
        do_sample=False, temperature=1.0, suppress_tokens=[config.image_token_id, config.video_token_id]
    )
    ids = [trainer._prompts[number].ids for number in trainer._prompt_of_row]
    ours, _ = trainer._generate_single_turn(ids, None, {}, 4)
    trainer._writes_itself = False
    theirs, _ = trainer._generate_single_turn(ids, None, {}, 4)
    assert ours == theirs


@pytest.mark.parametrize("engine", ["shared_prefix", "plain"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_trains_saves_and_goes_on(world: World, tmp_path: Path, dtype: str, engine: str) -> None:
    (tmp_path / "out").mkdir()
    for steps in (2, 3):
        config = world.config(dtype, engine=engine, max_steps=steps, save_steps=1)
        summary = train_on_rows(
            world.rows,
            FakeModel(),
            tmp_path / "out",
            tmp_path,
            config,
            world.folder / "data",
            Runtime(device=DEVICE),
            NullReporter(),
        )
        assert summary["steps"] == steps
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").stat().st_size > 1000


def test_an_update_that_does_not_fit_is_repeated_with_checkpointing(world: World) -> None:
    """The allocator itself refuses: this process may take only a little more while the update runs."""
    trainer = world.trainer("float32")
    rows = next(iter(trainer.get_train_dataloader()))
    trainer._prepare_inputs(rows)
    compute, total = trainer._compute_loss, torch.cuda.get_device_properties(0).total_memory

    def crowded(model: Any, inputs: Any) -> Any:
        if not trainer.args.gradient_checkpointing:
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (4 << 20)) / total)
        try:
            return compute(model, inputs)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)

    trainer._compute_loss = crowded
    trainer.training_step(trainer.model, rows)
    assert trainer.args.gradient_checkpointing
    assert sum(p.grad.norm().item() for p in trainer.model.parameters() if p.grad is not None) > 0
