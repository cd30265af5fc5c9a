"""ZeRO-3 spreads weights while they are read: their precision is settled before, and adapters share it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model

from lewis_core.config.base import ModelRef, Runtime
from lewis_core.config.training import LoraSettings
from lewis_core.models.loading import load_model
from lewis_core.testing import write_tiny_checkpoint
from lewis_core.training.assemble import adapter_config
from lewis_core.training.processes import settle_precision
from lewis_core.training.sharding import share_precision


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
