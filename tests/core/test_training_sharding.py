"""ZeRO-3 spreads weights while they are read: their precision is settled before, and adapters share it."""

import contextlib
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import get_peft_model

from lewis_core.config.base import ModelRef, Runtime
from lewis_core.config.training import LoraSettings
from lewis_core.models.loading import load_model
from lewis_core.testing import write_tiny_checkpoint
from lewis_core.training import sharding
from lewis_core.training.assemble import adapter_config
from lewis_core.training.processes import settle_precision
from lewis_core.training.sharding import share_precision, whole_vision_tower


@pytest.mark.parametrize(
    ("settings", "is_half", "enabled"),
    [
        pytest.param({"bf16": {"enabled": "auto"}}, True, True, id="half"),
        pytest.param({"bf16": {"enabled": "auto"}}, False, False, id="float32"),
        pytest.param({}, True, True, id="not-mentioned"),
        pytest.param({"bf16": {"enabled": False}}, True, False, id="the-user's-own"),
    ],
)
def test_deepspeed_is_told_the_precision_before_weights_are_read(
    settings: dict[str, Any], is_half: bool, enabled: bool
) -> None:
    settle_precision(settings, is_half=is_half)
    assert settings["bf16"]["enabled"] is enabled


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing. is deprecated:FutureWarning")
def test_adapters_get_the_precision_of_the_weights(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    model, _ = load_model(ModelRef(path=str(tmp_path), dtype="bfloat16"), Runtime(device="cpu"), trainable=True)
    adapted: Any = get_peft_model(model, adapter_config(model, LoraSettings(r=4, alpha=8)))
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}  # peft's choice
    share_precision(adapted)
    assert {parameter.dtype for parameter in adapted.parameters()} == {torch.bfloat16}
    assert [parameter for parameter in adapted.parameters() if parameter.requires_grad] == trained


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_copied_vision_tower_computes_the_same(tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    zero = SimpleNamespace(GatheredParameters=lambda _: contextlib.nullcontext())
    write_tiny_checkpoint(tmp_path, family=family)
    model, _ = load_model(ModelRef(path=str(tmp_path), dtype="bfloat16"), Runtime(device="cpu"))
    spec = ModuleSpec("deepspeed", None)
    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace(zero=zero, __spec__=spec))
    monkeypatch.setattr(sharding, "shards_weights", lambda: True)
    tower, copied = model.model.visual, whole_vision_tower(model).visual
    assert tower is not copied
    buffers = dict(copied.named_buffers())
    assert all(b.dtype == buffers[name].dtype and b.equal(buffers[name]) for name, b in tower.named_buffers())
    config = model.config.vision_config
    width = 3 * config.temporal_patch_size * config.patch_size**2
    pixels, grid = torch.randn(24 * 24, width, dtype=torch.bfloat16), torch.tensor([[1, 24, 24]])
    with torch.no_grad():
        theirs, ours = (one(pixels, grid_thw=grid) for one in (tower, copied))
    assert torch.equal(theirs.pooler_output, ours.pooler_output)
