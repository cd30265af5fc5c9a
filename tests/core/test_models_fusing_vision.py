"""Shortened vision towers against transformers' own, and what is left to them."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from lewis_core.models import fusing_vision
from lewis_core.models.attention import IMAGE_ATTENTION
from lewis_core.models.fusing_vision import fuse_vision

GRID = torch.tensor([[1, 4, 6], [1, 2, 2]])
SHARED = {"depth": 2, "num_heads": 2, "patch_size": 4, "initializer_range": 0.2}
WIDE = SHARED | {"hidden_size": 80, "intermediate_size": 52, "out_hidden_size": 16}
HEADS_OF_40 = {
    "qwen2_vl": (
        Qwen2VisionTransformerPretrainedModel,
        Qwen2VLVisionConfig,
        SHARED | {"embed_dim": 80, "mlp_ratio": 2},
    ),
    "qwen2_5_vl": (
        Qwen2_5_VisionTransformerPretrainedModel,
        Qwen2_5_VLVisionConfig,
        WIDE | {"window_size": 16, "fullatt_block_indexes": [1]},
    ),
    "qwen3_vl": (
        Qwen3VLVisionModel,
        Qwen3VLVisionConfig,
        WIDE | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]},
    ),
}
"""Class, class of its configuration, and sizes, by family."""


def tower(family: str) -> Any:
    """A vision tower with random weights that takes all images at once."""
    kind, configuration, sizes = HEADS_OF_40[family]
    torch.manual_seed(0)
    made: Any = kind._from_config(configuration(**sizes))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    made.config._attn_implementation = IMAGE_ATTENTION
    return made.eval()


def holder(vision: Any) -> Any:
    """What stands for a model with this tower."""
    return SimpleNamespace(base_model=SimpleNamespace(visual=vision))


def run(vision: Any) -> Tensor:
    """All that a tower makes of the patches of two images."""
    torch.manual_seed(1)
    out = vision(torch.randn(int(GRID.prod(-1).sum()), 96), grid_thw=GRID, return_dict=True)
    layers = getattr(out, "deepstack_features", None) or ()
    return torch.cat([x.flatten() for x in (out.last_hidden_state, out.pooler_output, *layers)])


def compare() -> None:
    """The program of the first test: prints what each family differs by, and how often it called the kernels."""
    from lewis_core.models import kernels

    fusing_vision.has_kernels = lambda _: True
    calls = {"add_norm": 0, "quick_gelu_": 0}
    for name in calls:

        def counted(*arguments: Any, name: str = name, kernel: Any = getattr(kernels, name)) -> Any:
            calls[name] += 1
            return kernel(*arguments)

        setattr(kernels, name, counted)
    for kernel in (kernels.Rotate, kernels.Gate):

        def applied(*arguments: Any, name: str = kernel.__name__, apply: Any = kernel.apply) -> Any:
            calls[name] = calls.get(name, 0) + 1
            return apply(*arguments)

        kernel.apply = applied
    found = {}
    for family in HEADS_OF_40:
        vision = tower(family)
        with torch.inference_mode():
            expected = run(vision)
        changed = [fuse_vision(holder(vision)) for _ in range(2)]
        calls.update(dict.fromkeys(calls, 0))
        with torch.inference_mode():
            off = [(run(vision) - expected).abs().max().item()]
        short = dict(calls)
        trained = run(vision)
        trained.sum().backward()
        off.append((trained - expected).abs().max().item())
        found[family] = {"off": off, "changed": changed, "calls": short, "with gradients": calls == short}
    sys.stdout.write(json.dumps(found))


def test_fused_towers_compute_what_transformers_computes() -> None:
    """Heads of 40, windows, deep stack; in a process of its own, as the interpreter is chosen when Triton is loaded."""
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    program = "from tests.core.test_models_fusing_vision import compare; compare()"
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found.keys() == HEADS_OF_40.keys()
    for family, of in found.items():
        assert max(of["off"]) < 1e-4, of
        of_mlps = {"qwen2_vl": "quick_gelu_", "qwen2_5_vl": "Gate"}.get(family)
        per_block = 3 if of_mlps else 2  # attention, block, MLP
        assert of["changed"] == [1 + 2 * per_block + 1, 0]  # patches, two blocks, the norm between them
        assert of["calls"]["add_norm"] == 2 + 1
        assert {name for name, count in of["calls"].items() if count} == {
            "add_norm",
            "Rotate",
            *filter(None, [of_mlps]),
        }
        assert of["with gradients"]  # no kernel was called


def linear_layers(vision: Any) -> int:
    """How many there are, whose products a CPU's library takes."""
    return sum(type(module) is nn.Linear for module in vision.modules())


@pytest.mark.parametrize("family", HEADS_OF_40)
def test_patches_are_embedded_by_one_product_anywhere(family: str) -> None:
    vision = tower(family)
    expected = run(vision)
    assert fuse_vision(holder(vision)) == 1 + linear_layers(vision)
    assert fuse_vision(holder(vision)) == 0
    found = run(vision)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    gradient = torch.autograd.grad(found.sum(), vision.patch_embed.proj.weight)[0]
    [wanted] = torch.autograd.grad(expected.sum(), vision.patch_embed.proj.weight)
    torch.testing.assert_close(gradient, wanted, atol=1e-2, rtol=1e-3)


def test_patches_that_overlap_are_left_to_the_convolution() -> None:
    vision = tower("qwen2_vl")
    vision.patch_embed.proj.stride = (1, 2, 2)
    assert fuse_vision(holder(vision)) == linear_layers(vision)


@pytest.mark.parametrize("family", HEADS_OF_40)
def test_what_is_not_plain_is_left_to_transformers(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images one by one, and weights that are spread over processes; no kernel could run here."""
    monkeypatch.setattr(fusing_vision, "has_kernels", lambda _: True)
    vision = tower(family)
    with torch.no_grad():
        expected = run(vision)
        fuse_vision(holder(vision))
        for parameter in vision.parameters():
            parameter.ds_id = 1
        assert torch.equal(run(vision), expected)
        for parameter in vision.blocks.parameters():
            del parameter.ds_id
        for block in vision.blocks:
            for part in (block, block.mlp):
                vars(part).pop("forward", None)
        vision.config._attn_implementation = "sdpa"
        torch.testing.assert_close(run(vision), expected, atol=1e-4, rtol=1e-4)


def test_what_is_compiled_or_not_known_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusing_vision, "has_kernels", lambda _: True)
    vision = tower("qwen2_vl")
    first, second = vision.blocks
    first.norm2.compile(backend="eager")
    first.mlp.compile(backend="eager")
    second.mlp.act = torch.nn.ReLU()
    second.norm1 = torch.nn.LayerNorm(80, bias=False)
    fuse_vision(holder(vision))
    short = [[name for name, part in block.named_modules() if "forward" in vars(part)] for block in vision.blocks]
    assert short == [["attn"], ["", "attn"]]


def test_a_norm_that_somebody_else_has_changed_is_not_computed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusing_vision, "has_kernels", lambda _: True)
    vision = tower("qwen2_vl")
    first, second = vision.blocks
    second.norm1.forward = lambda x: x
    fuse_vision(holder(vision))
    assert fusing_vision.FOLLOWING not in vars(first)
