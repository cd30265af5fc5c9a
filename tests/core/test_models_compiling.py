"""Compiled norms and MLPs: the same numbers, with and without gradient, whatever the length."""

from pathlib import Path

import pytest
import torch

from lewis_core.config.base import ModelRef, Runtime
from lewis_core.models import loading
from lewis_core.models.compiling import compile_layers
from lewis_core.models.continuation import Prompt
from lewis_core.models.features import VisionEncoder
from lewis_core.models.images import ImageFolder
from lewis_core.models.loading import load_model
from lewis_core.models.packing import Group, last_logits, pack
from lewis_core.testing import write_image, write_tiny_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks at it


def test_compiled_layers_compute_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = ModelRef(path=str(write_tiny_checkpoint(tmp_path)))
    plain, processor = load_model(ref, Runtime(device="cpu"))
    counts: list[int] = []
    monkeypatch.setattr(loading, "compile_layers", lambda model: counts.append(compile_layers(model, backend="eager")))
    compiled, _ = load_model(ref, Runtime(device="cpu", compile_layers=True))
    assert counts == [2 * 3 + 1 + 2 * 3]  # layers of two norms and an MLP, the last norm, blocks of the same
    assert compile_layers(compiled, backend="eager") == 0
    for suffixes in ([[20], [21, 22]], [[20, 23, 24, 25]] * 3):
        group = Group.of_questions(Prompt([9, 3, 4]), suffixes)
        found, expected = (last_logits(model, pack(model, [group], 1)) for model in (compiled, plain))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        found.sum().backward()
        expected.sum().backward()
    write_image(tmp_path / "a.jpg", 1, size=84)
    features, wanted_features = (
        VisionEncoder(model, processor.image_processor, ImageFolder(tmp_path), 0, 1)({"a": "a.jpg"})["a"]
        for model in (compiled, plain)
    )
    torch.testing.assert_close(features.tokens, wanted_features.tokens, atol=1e-5, rtol=0)
    with torch.inference_mode():
        torch.testing.assert_close(last_logits(compiled, pack(compiled, [group], 1)), expected, atol=1e-5, rtol=0)
    wanted = dict(plain.named_parameters())
    for name, parameter in compiled.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, wanted[name].grad, atol=1e-4, rtol=1e-4)
