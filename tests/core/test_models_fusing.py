"""Shortened layers: adapters against peft's own forward, and what is left to it."""

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from lewis_core.models import fusing_vision
from lewis_core.models.adapted import Adapted
from lewis_core.models.continuation import Prompt
from lewis_core.models.decoding import draw
from lewis_core.models.fusing import READY, _norm_forward, fuse
from lewis_core.models.packing import Group, last_logits, pack
from lewis_core.models.stacking import MergedStack, stacks_of
from lewis_core.testing import write_tiny_checkpoint


def adapted(folder: Path, **settings: Any) -> Any:
    """A tiny model in float64 with an adapter that is not zero."""
    from transformers import AutoModelForImageTextToText

    model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = LoraConfig(**{"r": 4, "target_modules": r".*language_model.*_proj"} | settings)
        model = get_peft_model(model, config, autocast_adapter_dtype=False)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


def run(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and gradients of a packed row."""
    model.zero_grad()
    group = Group.of_questions(Prompt([9, 3, 4]), [[20], [21, 22]])
    torch.manual_seed(1)  # of dropout
    logits = last_logits(model, pack(model, [group], 1))
    logits.square().sum().backward()
    return logits, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("fusing"))


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        pytest.param({"lora_alpha": 12}, 4, id="plain"),  # qkv, o; gate and up, down
        pytest.param({"lora_dropout": 0.5}, 4, id="dropout-at-rest"),
        pytest.param({"rank_pattern": {"k_proj": 2, "up_proj": 3}, "use_rslora": True}, 7, id="ranks-and-scales"),
        pytest.param({"rank_pattern": {"k_proj": 2}, "alpha_pattern": {"k_proj": 4}}, 4, id="other-rank"),
        pytest.param({"target_modules": r".*language_model.*(q|v|up|down)_proj"}, 4, id="some-without"),
        pytest.param({"use_dora": True}, 0, id="other-kind"),
        pytest.param({"lora_bias": True}, 0, id="with-bias"),
    ],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_compute_what_peft_computes(
    checkpoint: Path, settings: dict[str, Any], steps: int, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(checkpoint, **settings)
    expected, wanted = run(model)
    assert fuse(model) > 0
    assert fuse(model) == 0
    calls: list[int] = []
    apply = Adapted.apply
    monkeypatch.setattr(Adapted, "apply", lambda *arguments: (calls.append(1), apply(*arguments))[1])
    if checkpointing:
        model.train(settings.get("lora_dropout") is None)
        model.activation_checkpointing_enable({"use_reentrant": False})
    found, gradients = run(model)
    is_again = 2 if checkpointing and model.training else 1
    assert len(calls) == is_again * steps * len(model.get_base_model().model.language_model.layers)
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=0)
    assert gradients.keys() == wanted.keys() != set()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("register", ["register_forward_hook", "register_full_backward_hook"])
def test_who_wants_to_be_told_of_a_layer_is(checkpoint: Path, register: str) -> None:
    """Layers of one input are computed one by one if somebody listens to one of them."""
    model = adapted(checkpoint)
    fuse(model)
    expected, wanted = run(model)
    told: list[Tensor] = []
    layer = model.get_base_model().model.language_model.layers[-1].self_attn.k_proj
    getattr(layer, register)(lambda *found: told.append(found[-1]))
    found, gradients = run(model)
    assert len(told) == 1
    torch.testing.assert_close(found, expected)
    assert all(torch.allclose(gradients[name], wanted[name]) for name in wanted)


def test_dropout_in_training_and_switched_off_adapters_are_pefts_own(checkpoint: Path) -> None:
    model = adapted(checkpoint, lora_dropout=0.5).train()
    expected, wanted = run(model)
    with model.disable_adapter(), torch.no_grad():
        bare = last_logits(model, pack(model, [Group.of_questions(Prompt([9]), [[20]])], 1))
    fuse(model)
    found, gradients = run(model)
    torch.testing.assert_close(found, expected)
    assert all(torch.equal(gradients[name], wanted[name]) for name in wanted)
    with model.disable_adapter(), torch.no_grad():
        again = last_logits(model, pack(model, [Group.of_questions(Prompt([9]), [[20]])], 1))
    assert torch.equal(again, bare)


def test_layers_that_are_spread_over_processes_go_back_to_their_own_forward(checkpoint: Path) -> None:
    """For good, at their first call: a rollout would ask each of them again for every token."""
    model = adapted(checkpoint)
    expected, wanted = run(model)
    fuse(model)
    layers = [module for module in model.modules() if hasattr(module, "lora_A")]
    assert all("forward" in vars(layer) for layer in layers)
    for parameter in model.parameters():
        parameter.ds_id = 0  # as ZeRO-3 marks them
    found, gradients = run(model)
    assert not any("forward" in vars(layer) for layer in layers)
    torch.testing.assert_close(found, expected)
    assert all(torch.equal(gradients[name], wanted[name]) for name in wanted)


def test_a_gradient_is_the_slope() -> None:
    """Two layers of one input, of different ranks, one with a bias."""
    torch.manual_seed(0)
    shapes = ((2, 3, 5), (2, 5), (4, 2), (3, 5), (6, 3))
    inputs = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    first, second, bias = (torch.randn(*shape, dtype=torch.float64) for shape in ((4, 5), (6, 5), (4,)))

    def outs(x: Tensor, *parts: Tensor) -> Any:
        return Adapted.apply(x, 0.7, first, bias, *parts[:2], second, None, *parts[2:])

    assert torch.autograd.gradcheck(outs, inputs)


def test_norms_say_the_same(checkpoint: Path) -> None:
    """Their short form runs on a GPU only."""
    layer = adapted(checkpoint).get_base_model().model.language_model.layers[0]
    x = torch.randn(1, 3, layer.input_layernorm.weight.numel(), dtype=torch.float64)
    torch.testing.assert_close(_norm_forward(layer.input_layernorm, x), layer.input_layernorm(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize("of_norm", [_norm_forward, fusing_vision._norm_forward])
def test_what_was_normed_without_gradients_is_not_taken_with_them(checkpoint: Path, of_norm: Any) -> None:
    """A checkpoint that runs a layer without gradients ends before the norm that follows, which needs them."""
    norm = adapted(checkpoint).get_base_model().model.language_model.norm
    x = torch.randn(1, 3, norm.weight.numel(), dtype=torch.float64, requires_grad=True)
    for with_gradients in (False, True):
        ready = torch.zeros_like(x)
        norm.__dict__[READY] = x, ready
        with torch.set_grad_enabled(with_gradients):
            out = of_norm(norm, x)
        assert (out is ready) is not with_gradients
        assert out.requires_grad is with_gradients
        assert READY not in vars(norm)


@pytest.mark.parametrize("size", [7, 512, 5000])
def test_draws_are_the_inverse_of_the_distribution(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    probabilities = torch.rand((40, size), generator=generator)
    probabilities[torch.rand((40, size), generator=generator) < 0.3] = 0.0
    probabilities[:, size // 2] = 0.5
    probabilities[0] = torch.nn.functional.one_hot(torch.tensor(size // 2), size)
    chance = torch.rand((40, 1), generator=generator, dtype=torch.float64)
    chance[1:4, 0] = torch.tensor([0.0, 1 - 2**-53, 0.5], dtype=torch.float64)
    token = draw(probabilities, chance)
    until = probabilities.double().cumsum(-1)
    whole = chance[:, 0] * until[:, -1]
    upper = until.gather(1, token[:, None])[:, 0]
    mass = probabilities.gather(1, token[:, None])[:, 0].double()
    assert (mass > 0).all()
    assert (upper >= whole - 1e-9).all()
    assert (upper - mass <= whole + 1e-9).all()


def test_stacked_layers_compute_what_each_computes(checkpoint: Path) -> None:
    """Queries, keys and values with biases and adapters; weights move, and stay what they are and fit for training."""
    model = adapted(checkpoint, lora_alpha=12)
    text = model.get_base_model().model.language_model
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with torch.inference_mode():
        stacks = stacks_of(text)
    assert len(stacks) == 4 * len(text.layers)
    assert [a is b for a, b in zip(stacks, stacks_of(text), strict=True)] == [True] * len(stacks)
    x = torch.randn(2, 3, text.config.hidden_size, dtype=torch.float64)
    with torch.inference_mode():
        for stack in stacks[:1] + stacks[2:3]:
            assert stack.refresh()
            for found, layer in zip(stack(x), stack.layers, strict=True):
                torch.testing.assert_close(found, layer(x))
    logits, gradients = run(model)
    assert gradients and logits.requires_grad
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    with model.disable_adapter():
        assert not stacks[0].refresh()  # other adapters than it was made for
    assert stacks[0].refresh()
    text.layers[0].self_attn.q_proj.base_layer.weight.data = before[next(n for n in before if "q_proj.base" in n)]
    assert not stacks[0].refresh()  # somebody has put another weight there
    assert stacks_of(text)[0] is not stacks[0]


def test_merged_stacks_compute_what_each_layer_computes(checkpoint: Path) -> None:
    """Copies: weights stay where they are, and whatever is trained or switched meanwhile is taken over."""
    model = adapted(checkpoint, lora_alpha=12)
    text = model.get_base_model().model.language_model
    before = {name: (parameter.data_ptr(), parameter.clone()) for name, parameter in model.named_parameters()}
    assert stacks_of(text, MergedStack) == []  # nobody would ask for them
    fuse(model)
    with torch.inference_mode():
        stacks = stacks_of(text, MergedStack)
    assert len(stacks) == 4 * len(text.layers)
    assert [a is b for a, b in zip(stacks, stacks_of(text, MergedStack), strict=True)] == [True] * len(stacks)

    def check() -> None:
        with torch.no_grad():
            for stack in stacks:
                assert stack.refresh()
                layer = getattr(stack.layers[0], "base_layer", stack.layers[0])
                x = torch.randn(2, 3, layer.in_features, dtype=layer.weight.dtype)
                for found, layer in zip(stack(x), stack.layers, strict=True):
                    torch.testing.assert_close(found, layer(x))

    check()
    for name, parameter in model.named_parameters():
        assert parameter.data_ptr() == before[name][0]
        assert torch.equal(parameter, before[name][1])
    layer = text.layers[0].self_attn.k_proj
    nn.init.normal_(layer.lora_B["default"].weight)
    check()
    with model.disable_adapter():
        assert stacks_of(text, MergedStack) == []  # a copy of the weights alone gains little
        check()
    layer.base_layer.weight.data = layer.base_layer.weight.data * 2
    check()
    model.float()
    assert stacks_of(text, MergedStack)[0] is not stacks[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = get_peft_model(model.unload(), LoraConfig(r=4, target_modules=r".*language_model.*_proj"))
    fuse(again)
    assert stacks_of(text, MergedStack)[0].layers[0] is text.layers[0].self_attn.q_proj  # not the one before


def test_products_of_few_rows_are_divided_among_multiprocessors(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = pytest.importorskip("lewis_core.models.product_kernels", reason="needs Triton")
    gpu = SimpleNamespace(multi_processor_count=132, shared_memory_per_block_optin=232448)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    kernels._plan.cache_clear()
    device = torch.device("cuda", 7)
    shapes = [(38016, 3584), (4800, 3584), (3648, 3584), (3648, 18944), (1600, 8960)]
    assert [kernels.plan(64, *shape, device).parts for shape in shapes] == [1, 1, 2, 2, 5]
    assert kernels.plan(64, 3648, 3584, device).stages == 5
    assert kernels.plan(65, 3648, 3584, device) is None  # many rows
    assert kernels.plan(64, 3648, 3500, device) is None  # no whole pieces
    gpu.shared_memory_per_block_optin, other = 65536, torch.device("cuda", 8)
    assert kernels.plan(64, 3648, 3584, other) is None  # too little shared memory for pieces under way
    assert kernels.plan(16, 3648, 3584, other).stages == 3


def test_what_cannot_be_stacked_is_left_alone(checkpoint: Path) -> None:
    assert stacks_of(adapted(checkpoint, use_dora=True).get_base_model().model.language_model) == []
    plain = adapted(checkpoint).unload().model.language_model
    for parameter in plain.parameters():
        parameter.requires_grad = True
    with torch.no_grad():
        assert stacks_of(plain) == []  # an optimizer may hold the weights
    with torch.inference_mode():
        assert len(stacks_of(plain)) == 2 * len(plain.layers)  # single layers without adapters gain nothing
