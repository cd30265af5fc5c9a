"""How much goes into one pass, and where a step's time goes."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lewis_core.config.base import ModelRef, Runtime
from lewis_core.config.training import TrainSpeakerConfig
from lewis_core.models.loading import load_model
from lewis_core.testing import write_tiny_checkpoint
from lewis_core.training import memory
from lewis_core.training.clock import StepClock
from lewis_core.training.memory import Estimate, Plan


def config(**changes: object) -> TrainSpeakerConfig:
    reference = ModelRef(path="pocket:base")
    settings = {"model": reference, "listener": reference, "num_generations": 4, "max_new_tokens": 50, **changes}
    return TrainSpeakerConfig.model_validate(settings)


def estimate(free: float) -> Estimate:
    """1,000 tokens a prompt, 1,000 bytes a token without checkpointing and 100 with it: 1 MB and 0.1 MB."""
    return Estimate(tokens_per_prompt=1000, kept_per_token=1000, checkpointed_per_token=100, free=free)


@pytest.mark.parametrize(
    ("free_mb", "changes", "expected"),
    [
        (100, {}, Plan(8, checkpointing=False)),
        (10, {}, Plan(4, checkpointing=False)),  # 75 % of 10 MB hold 7 prompts, of which 4 divide 8
        (4, {}, Plan(2, checkpointing=False)),
        (2, {}, Plan(8, checkpointing=True)),  # one prompt without checkpointing, or eight with it
        (0.1, {}, Plan(1, checkpointing=True)),  # nothing fits: the least is tried
        (2, {"gradient_checkpointing": False}, Plan(1, checkpointing=False)),
        (100, {"gradient_checkpointing": True}, Plan(8, checkpointing=True)),
        (100, {"micro_batch_tokens": 2500}, Plan(2, checkpointing=False)),
        (100, {"micro_batch_tokens": 1}, Plan(1, checkpointing=False)),
        (2, {"micro_batch_prompts": 4}, Plan(4, checkpointing=True)),
        (100, {"micro_batch_prompts": 64}, Plan(8, checkpointing=False)),
    ],
)
def test_a_pass_takes_what_fits(free_mb: float, changes: dict[str, object], expected: Plan) -> None:
    assert memory.plan(estimate(free_mb * 1e6), config(**changes), share=8) == expected


def test_the_report_names_what_was_estimated() -> None:
    text = memory.report(Estimate(2480, 7e6, 0.6e6, 60 * 2**30), Plan(2, checkpointing=False))
    assert "2 prompts of up to 2480 tokens a pass, checkpointing off" in text
    assert "32.34 GiB without it and 2.77 GiB with it, 60.0 GiB free" in text


def test_one_process_agrees_with_itself() -> None:
    plan = Plan(2, checkpointing=False)
    assert memory.agree(plan, torch.device("cpu")) == plan


def test_activations_of_a_7b_model_are_estimated_as_measured() -> None:
    """On an H100, 28 layers of width 3,584 with an MLP of 18,944 took 4.97 MB a token, 0.6 MB with checkpointing."""
    text = SimpleNamespace(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28)
    settings = SimpleNamespace(
        get_text_config=lambda: text, vision_config=SimpleNamespace(patch_size=14, spatial_merge_size=2)
    )
    model = SimpleNamespace(config=settings, dtype=torch.bfloat16, device=torch.device("cpu"))
    model.base_model = model
    found = memory.estimate(model, config(max_new_tokens=150, num_generations=8))
    assert found.kept_per_token == pytest.approx(4.97e6, rel=0.01)
    long_way = memory.estimate(model, config(model=ModelRef(path="pocket:base", engine="plain")))
    assert long_way.kept_per_token == pytest.approx(7.0e6, rel=0.05)  # adapters keep their input in float32 too
    assert found.checkpointed_per_token == pytest.approx(0.8e6, rel=0.2)
    assert found.tokens_per_prompt == 512 + 256 + 8 * 150  # 401,408 pixels are 512 visual tokens


def test_an_estimate_of_a_real_model_knows_what_is_free(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    model, _ = load_model(ModelRef(path=str(tmp_path)), Runtime(device="cpu"))
    found = memory.estimate(model, config())
    assert 1e8 < found.free < 1e14
    assert found.kept_per_token > found.checkpointed_per_token > 0


def test_a_clock_counts_inner_parts_for_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, now = StepClock(), iter([0.0, 1.0, 4.0, 10.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    with clock.measure("update"), clock.measure("rollout"):
        clock.count("rollout", 60)
    assert clock.take() == {"seconds/update": 7.0, "seconds/rollout": 3.0, "tokens_per_s/rollout": 20.0}
    assert clock.take() == {}
