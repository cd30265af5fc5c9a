"""The engine on a GPU: its kernels against plain forward passes. Runs where torch finds one.

Needs nothing but ``lewis_core`` and its models' dependencies: ``python -m pytest --noconftest tests/gpu -q``.
"""

import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one process takes one GPU; to be said before torch looks

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lewis_core.config.base import ModelRef, Runtime
from lewis_core.listener.schemas import GameScores, GenerateItem, ScoreGame
from lewis_core.models.attention import ATTENTION, IMAGE_ATTENTION
from lewis_core.models.compiling import compile_layers
from lewis_core.models.continuation import Prompt
from lewis_core.models.features import VisionEncoder, encoder_outputs
from lewis_core.models.fusing import fuse, has_kernels
from lewis_core.models.images import ImageFolder
from lewis_core.models.loading import load_model
from lewis_core.models.packing import IGNORE, Group, pack
from lewis_core.models.shared_prefix import EngineOptions
from lewis_core.models.vlm import VisionLanguageModel, open_model
from lewis_core.prompts import CONCISE
from lewis_core.testing import write_image, write_tiny_checkpoint

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")]
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
SIZES = {"a.jpg": (56, 84), "b.jpg": (112, 56), "c.jpg": (140, 140)}
GAMES = [
    ScoreGame(candidates=("a.jpg", "b.jpg", "c.jpg"), descriptions=("A red mug.", "A bag with a star on it.", "x")),
    ScoreGame(candidates=("c.jpg", "a.jpg"), descriptions=("A hat.",), category="hat"),
]


class Family:
    """A checkpoint, and ways to load it."""

    def __init__(self, folder: Path, family: str) -> None:
        from PIL import Image

        self.checkpoint = write_tiny_checkpoint(folder / "model", family=family, hidden_size=128)
        for seed, (name, size) in enumerate(SIZES.items()):
            write_image(folder / name, seed)
            Image.open(folder / name).resize(size).save(folder / name)
        self.images = ImageFolder(folder)

    def load(self, dtype: str = "float32", device: Any = "cuda", **options: Any) -> tuple[Any, Any]:
        """Model and processor."""
        ref = ModelRef(path=str(self.checkpoint), dtype=dtype, min_pixels=784, **options)
        return load_model(ref, Runtime(device=device))

    def open(
        self, dtype: str = "float32", device: str = "cuda", engine: Any = "shared_prefix", **options: Any
    ) -> VisionLanguageModel:
        """The facade."""
        loaded = self.load(dtype, device, engine=engine)
        return VisionLanguageModel(*loaded, CONCISE, self.images, engine=engine, options=EngineOptions(**options))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(tmp_path_factory.mktemp("gpu"), request.param)


@pytest.fixture(autouse=True)
def exact_products() -> None:
    """No TF32, so that float32 can be compared."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


@pytest.fixture
def whole_memory() -> Iterator[None]:
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def requested_bytes() -> int:
    """What tensors take, without what the allocator adds to them."""
    return int(torch.cuda.memory_stats()["requested_bytes.all.current"])


def odds(scores: list[GameScores]) -> torch.Tensor:
    return torch.tensor([value for game in scores for row in game.yes_log_odds for value in row])


def test_loading_chooses_the_gpu_s_kernels(family: Family) -> None:
    model, _ = family.load("bfloat16")
    assert model.model.language_model.config._attn_implementation == ATTENTION
    assert all(block.attn.config._attn_implementation == IMAGE_ATTENTION for block in model.model.visual.blocks)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    layer = model.model.language_model.layers[0]
    parts = (layer, layer.input_layernorm, layer.mlp, layer.self_attn)
    assert has_kernels(model.model.language_model)
    assert all("forward" in vars(part) for part in parts)
    first, second = model.model.visual.blocks
    assert all("forward" in vars(part) for part in (first, first.attn, second.norm1))


def test_kernels_compute_what_is_written_plainly() -> None:
    from lewis_core.models import kernels

    torch.manual_seed(0)
    prompts, groups, repeats, size, length, slots = 8, 4, 7, 128, 1100, 8
    shapes = [(prompts, groups, length, size)] * 2 + [(prompts, groups, slots, 192, size)] * 2
    stores = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in shapes]
    hidden = torch.zeros(prompts, length, device="cuda", dtype=torch.bfloat16)
    hidden[1, :200] = torch.finfo(torch.bfloat16).min
    for at in (0, 100):
        query, key, value = (
            torch.randn(prompts * slots, heads, size, device="cuda", dtype=torch.bfloat16)
            for heads in (groups * repeats, groups, groups)
        )
        place = torch.tensor([at], device="cuda")
        found = kernels.decode(query, key, value, tuple(stores[:2]), tuple(stores[2:]), hidden, place, size**-0.5)
        keys, values = (
            torch.cat([stores[i][:, :, None].expand(-1, -1, slots, -1, -1), stores[i + 2][..., : at + 1, :]], 3).float()
            for i in range(2)
        )
        mask = torch.nn.functional.pad(hidden.float(), (0, at + 1))[:, None, None, None]
        folded = query.float().view(prompts, slots, groups, repeats, size).transpose(1, 2)
        weights = (folded @ keys.transpose(3, 4) * size**-0.5 + mask).softmax(-1)
        expected = (weights @ values).transpose(1, 2).reshape_as(found)
        assert (found.float() - expected).norm() / expected.norm() < 1e-2
    gate, up = (torch.randn(300, 999, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    expected = torch.nn.functional.silu(gate.float()) * up.float()
    torch.testing.assert_close(kernels.Gate.apply(gate, up).float(), expected, atol=0.05, rtol=0.01)
    angles = torch.randn(300, 64, device="cuda")
    cos, sin = (torch.cat([x, x], -1).bfloat16() for x in (angles.cos(), angles.sin()))
    for size in (128, 80, 72, 64):
        turns = [x[:, : size // 2].repeat(1, 2) for x in (cos, sin)]
        x = torch.randn(300, 3, 16, size, device="cuda", dtype=torch.bfloat16)[:, 1]
        first, second = x.float().chunk(2, -1)
        expected = x.float() * turns[0].float()[:, None] + torch.cat([-second, first], -1) * turns[1].float()[:, None]
        for found in kernels.Rotate.apply(x, x, *turns):
            torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0.01)
    x = torch.randn(300, 999, device="cuda", dtype=torch.bfloat16)
    expected = x.float() * torch.sigmoid(1.702 * x.float())
    torch.testing.assert_close(kernels.quick_gelu_(x).float(), expected, atol=0.05, rtol=0.01)
    x, other, weight = (torch.randn(*shape, device="cuda").bfloat16() for shape in ((300, 3584), (300, 3584), (3584,)))
    total, found = kernels.add_norm(x, other, weight, 1e-6)
    assert torch.equal(total, x + other)
    expected = torch.nn.functional.rms_norm(total.float(), (3584,), weight.float(), 1e-6)
    torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0.01)
    found = kernels.add_norm(x, other, weight, 1e-6, other[0])[1]
    expected = torch.nn.functional.layer_norm(total.float(), (3584,), weight.float(), other[0].float(), 1e-6)
    torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0.01)


@pytest.mark.parametrize("rank", [16, 64, 128])
@pytest.mark.parametrize("count", [5, 32, 200, 300])
def test_kernels_with_adapters_compute_what_is_written_plainly(rank: int, count: int) -> None:
    """An MLP's inputs, and queries, keys and values, of Qwen2-VL-7B; rows are parts of wider ones."""
    from lewis_core.models import adapter_kernels

    def adapted(sizes: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        outputs, inner = sum(sizes), rank * len(sizes)
        rows = torch.randn(count, outputs + inner + 8, device="cuda").bfloat16()[:, :-8]
        after = torch.block_diag(*(torch.randn(size, rank) * rank**-0.5 for size in sizes)).cuda().bfloat16()
        return rows, after, rows[:, :outputs].float() + rows[:, outputs:].float() @ after.float().t()

    rows, after, whole = adapted([18944, 18944])
    gate, up = whole.split(18944, 1)
    found = adapter_kernels.gate(rows, after, rank).float()
    torch.testing.assert_close(found, torch.nn.functional.silu(gate) * up, atol=0.05, rtol=0.02)
    rows, after, whole = adapted([3584, 512, 512])
    angles = torch.randn(count, 64, device="cuda")
    cos, sin = (torch.cat([x, x], -1).bfloat16() for x in (angles.cos(), angles.sin()))
    query, key, value = adapter_kernels.heads(rows, after, rank, cos, sin, (28, 4, 128))
    expected = whole.view(count, 36, 128).split([28, 4, 4], 1)
    torch.testing.assert_close(value.float(), expected[2], atol=0.05, rtol=0.02)
    for found, x in zip((query, key), expected, strict=False):
        first, second = x.chunk(2, -1)
        turned = x * cos.float()[:, None] + torch.cat([-second, first], -1) * sin.float()[:, None]
        torch.testing.assert_close(found.float(), turned, atol=0.05, rtol=0.02)


@pytest.mark.parametrize(("outputs", "inputs"), [(2 * 18944, 3584), (3584, 18944), (3584, 3584), (1536, 8960)])
@pytest.mark.parametrize("count", [3, 64, 65])
def test_products_of_few_rows_are_those_of_the_library(outputs: int, inputs: int, count: int) -> None:
    """Layers of Qwen2-VL-7B and 2B with an adapter of rank 64."""
    from lewis_core.models import product_kernels

    x = torch.randn(count, inputs + 8, device="cuda").bfloat16()[:, :-8]
    weight = (torch.randn(outputs + 64, inputs, device="cuda") * inputs**-0.5).bfloat16()
    after = (torch.randn(outputs, 64, device="cuda") / 8).bfloat16()
    plan = product_kernels.plan(count, *weight.shape, x.device)
    assert (plan is None) == (count > product_kernels.MOST_ROWS)
    if plan is None:
        return
    expected = x.float() @ weight.float().t()
    sums = product_kernels.multiply(x, weight, None, plan)
    torch.testing.assert_close(sums.float().sum(0), expected, atol=0.02, rtol=0.01)
    joined = expected[:, :outputs] + expected[:, outputs:] @ after.float().t()
    torch.testing.assert_close(product_kernels.join(sums, after).float(), joined, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("rank", [16, 64, 128])
@pytest.mark.parametrize(("count", "width"), [(5, 18944), (1000, 1002), (2100, 18944)])
def test_an_mlp_with_adapters_computes_what_is_written_plainly(rank: int, count: int, width: int) -> None:
    """Output, gradients and what is kept for them; in half precision against the same values in float32."""
    from lewis_core.models.adapted import AdaptedMlp

    def linear(x: torch.Tensor, layer: list[torch.Tensor]) -> torch.Tensor:
        weight, a, b = layer
        return x @ weight.t() + 2.0 * (x @ a.t()) @ b.t()

    torch.manual_seed(0)
    shapes = [((outputs, inputs), (rank, inputs), (outputs, rank)) for outputs, inputs in [(width, 256)] * 2]
    shapes.append(((256, width), (rank, width), (256, rank)))
    layers = [[(torch.randn(s, device="cuda") * s[1] ** -0.5).bfloat16().float() for s in layer] for layer in shapes]
    x = torch.randn(1, count, 256, device="cuda").bfloat16().float()
    inputs = [x, *(part for _, *parts in layers for part in parts)]
    for tensor in inputs:
        tensor.requires_grad_()
    gate, up, down = layers
    expected = linear(torch.nn.functional.silu(linear(x, gate)) * linear(x, up), down)
    grad = torch.randn_like(expected).bfloat16()
    wanted = torch.autograd.grad(expected, inputs, grad.float())
    tensors = [tensor for weight, a, b in layers for tensor in (weight.bfloat16(), None, a, b)]
    half = x.bfloat16()
    AdaptedMlp.apply(half, 2.0, *tensors)  # what libraries allocate once
    before = requested_bytes()
    found = AdaptedMlp.apply(half, 2.0, *tensors)
    kept = requested_bytes() - before - found.nbytes
    assert kept <= 2 * count * (3 * width + 3 * rank) + (1 << 16)
    gradients = torch.autograd.grad(found, inputs, grad)
    for one, other in zip((found, *gradients), (expected, *wanted), strict=True):
        assert (one.float() - other).norm() <= 0.02 * other.norm()


@pytest.mark.parametrize("rank", [4, 16])
def test_adapters_are_part_of_what_is_written_in_half_precision(family: Family, rank: int) -> None:
    """Stacked products against every layer for itself; weights come back to the last bit."""
    from peft import LoraConfig, get_peft_model

    from lewis_core.models.sampling import Sampler, Sampling
    from lewis_core.models.stacking import Stack

    model, _ = family.load("bfloat16")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear", exclude_modules=".*visual.*"))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    fuse(model)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    arguments = {"image_token_id": model.config.image_token_id, "pad_id": 0, "eos_ids": [], "banned": []}
    prompts, rows = [Prompt([9, 3, 4, 5]), Prompt([9, 8])], [0, 0, 1]
    sampling = [Sampling(8, 0.0, 0)] * 3
    found = Sampler(model, **arguments).sample(prompts, rows, sampling)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    stacks = [stack for module in model.modules() if (stack := vars(module).get("stack"))]
    assert len(stacks) == 4 * len(model.get_base_model().model.language_model.layers)
    assert all(isinstance(stack, Stack) and not stack.is_active for stack in stacks)
    for written, row in zip(found, rows, strict=True):
        group = Group.of_completions(prompts[row], [torch.tensor(written.ids)])
        with torch.no_grad():
            packed = pack(model, [group], arguments["image_token_id"])
            kept = packed.labels != IGNORE
            logits = model(**packed.forward_arguments(model), logits_to_keep=kept).logits.float().view(8, -1)
        expected = logits.log_softmax(-1).gather(1, packed.labels[kept][:, None])[:, 0].cpu()
        torch.testing.assert_close(torch.tensor(written.logps), expected, atol=0.15, rtol=0)


def test_steps_by_kernels_write_the_texts_of_plain_steps(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy, in half precision: where texts part, both tokens are about as likely."""
    from lewis_core.models import decoding
    from lewis_core.models.sampling import Sampler, Sampling, Written

    model, _ = family.load("bfloat16")
    arguments = {"image_token_id": model.config.image_token_id, "pad_id": 0, "eos_ids": [], "banned": [3]}
    prompts, rows = [Prompt([9, 3, 4, 5]), Prompt([9, 8]), Prompt([7, 6, 5])], [0, 0, 1, 2, 2, 2]
    sampling = [Sampling(40, 0.0, 0)] * len(rows)

    def write() -> list[Written]:
        return Sampler(model, **arguments).sample(prompts, rows, sampling)

    found = write()
    monkeypatch.setattr(decoding, "has_kernels", lambda _: False)
    common = []
    for one, other in zip(found, write(), strict=True):
        pairs = enumerate(zip(one.ids, other.ids, strict=True))
        until = next((number for number, (a, b) in pairs if a != b), len(one.ids) - 1) + 1
        common.append(until)
        assert one.logps[:until] == pytest.approx(other.logps[:until], abs=0.15)
    assert max(common) > 3


@pytest.mark.parametrize("packed", [True, False])
def test_scores_in_float32_equal_plain_passes(family: Family, packed: bool) -> None:
    expected = odds(family.open(engine="plain").score(GAMES))
    torch.testing.assert_close(odds(family.open(packed=packed).score(GAMES)), expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(expected, odds(family.open(device="cpu").score(GAMES)), atol=1e-3, rtol=0)


@pytest.mark.parametrize("packed", [True, False])
def test_scores_in_bfloat16_are_as_good_as_plain_passes(family: Family, packed: bool) -> None:
    """Flash attention for packed rows and for images: no farther from float32 than twice what plain bfloat16 is."""
    exact = odds(family.open(device="cpu").score(GAMES))
    plain = odds(family.open("bfloat16", engine="plain").score(GAMES))
    found = odds(family.open("bfloat16", packed=packed).score(GAMES))
    assert found.isfinite().all()
    assert (found - exact).abs().max() <= 2 * (plain - exact).abs().max() + 0.05


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kept_keys_answer_as_computed_ones(family: Family, dtype: str) -> None:
    """Photos that came before with other descriptions: by flash attention no farther from float32 than plain passes."""
    before = [ScoreGame(candidates=("c.jpg", "b.jpg"), descriptions=("A blue hat.", "y"), category="mug")]
    exact = odds(family.open(device="cpu").score(GAMES))
    plain = odds(family.open(dtype, engine="plain").score(GAMES))
    for tokens in (None, 300):
        model = family.open(dtype, prompt_bytes=1 << 24, batch_tokens=tokens)
        model.score(before)
        for _ in range(2):
            found = odds(model.score(GAMES))
            cache = model.prompt_cache()
            assert cache is not None
            assert cache.entries == 3
            limit = 1e-3 if dtype == "float32" else 2 * float((plain - exact).abs().max()) + 0.05
            assert (found - exact).abs().max() <= limit
        assert cache.hits == 2 + 3


def test_features_of_a_shortened_tower_are_as_good_as_transformers_own(family: Family) -> None:
    """In bfloat16: no farther from float32 than transformers' tower, which takes image by image."""
    references = {name: name for name in SIZES}

    def features(dtype: str, device: str, engine: Any) -> torch.Tensor:
        model, processor = family.load(dtype, device, engine=engine)
        found = VisionEncoder(model, processor.image_processor, family.images, 0, 2)(references).values()
        return torch.cat([x.float().cpu().flatten() for f in found for x in (f.tokens, *f.deepstack)])

    exact = features("float32", "cpu", "plain")
    plain, found = (features("bfloat16", "cuda", engine) for engine in ("plain", "shared_prefix"))
    assert found.isfinite().all()
    assert (found - exact).norm() <= 1.2 * (plain - exact).norm()


def test_features_of_many_images_equal_those_of_one(family: Family) -> None:
    model, processor = family.load("bfloat16")
    references = {name: name for name in SIZES}
    together = VisionEncoder(model, processor.image_processor, family.images, 0, 2)(references)
    for name in SIZES:
        [alone] = VisionEncoder(model, processor.image_processor, family.images, 0, 2)({name: name}).values()
        pairs = zip((alone.tokens, *alone.deepstack), (together[name].tokens, *together[name].deepstack), strict=True)
        for one, other in pairs:
            torch.testing.assert_close(other.float(), one.float(), atol=0.05 * float(one.abs().max()), rtol=0)


@pytest.mark.parametrize("rank", [2, 16])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_get_the_gradients_of_separate_sequences(family: Family, checkpointing: bool, rank: int) -> None:
    """Direction of the whole gradient, packed in bfloat16 against separate sequences in float32 on the CPU."""
    exact = gradient(family, "cpu", "float32", rank, packed=False)
    plain = gradient(family, "cuda", "bfloat16", rank, packed=False)
    found = gradient(family, "cuda", "bfloat16", rank, packed=True, checkpointing=checkpointing)
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(exact, found, 0) >= min(0.999, 1 - 2 * (1 - float(cosine(exact, plain, 0))))


def gradient(
    family: Family, device: str, dtype: str, rank: int, *, packed: bool, checkpointing: bool = False
) -> torch.Tensor:
    """Gradient of the sum of three completions' log-probabilities, all adapters in one vector."""
    from peft import LoraConfig, get_peft_model

    model, processor = family.load(dtype, device)
    references = {name: name for name in ("a.jpg", "b.jpg")}
    features = VisionEncoder(model, processor.image_processor, family.images, 0, 2)(references).values()
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear", exclude_modules=".*visual.*"))
    if packed:
        fuse(model)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.linspace(-0.1, 0.1, parameter.numel()).view(parameter.shape).to(parameter)
    if checkpointing:
        model.train()
        model.activation_checkpointing_enable({"use_reentrant": False})
    image_token = int(model.config.image_token_id)
    images = tuple(type(f)(f.tokens.clone(), f.grid, tuple(x.clone() for x in f.deepstack)) for f in features)
    prompt = Prompt([9, *[image_token] * len(images[0].tokens), 5, *[image_token] * len(images[1].tokens), 3], images)
    completions = [torch.tensor([31, 32, 33, 34]), torch.tensor([40]), torch.tensor([21, 22])]
    grouped = [completions] if packed else [[completion] for completion in completions]
    for of_row in grouped:
        row = pack(model, [Group.of_completions(prompt, of_row)], image_token)
        arguments = row.forward_arguments(model)
        if not packed:
            arguments = {
                "input_ids": row.input_ids,
                "position_ids": row.position_ids,
                "mm_encoder_outputs": encoder_outputs(images),
                "use_cache": False,
            }
        kept = row.labels != IGNORE
        logits = model(**arguments, logits_to_keep=kept).logits
        logits.float().log_softmax(-1).gather(-1, row.labels[kept].view(*logits.shape[:-1], 1)).sum().backward()
    found = [p.grad.float().cpu().flatten() for name, p in sorted(model.named_parameters()) if p.grad is not None]
    return torch.cat(found)


def test_greedy_texts_equal_plain_generation(family: Family) -> None:
    items = [GenerateItem(image=image, prompt="Say.", max_new_tokens=12) for image in ("a.jpg", None, "c.jpg")]
    assert family.open().generate(items) == family.open(engine="plain").generate(items)


def test_compiled_layers_compute_the_same(family: Family) -> None:
    expected = odds(family.open().score(GAMES))
    model, processor = family.load()
    assert compile_layers(model) > 0
    compiled = VisionLanguageModel(model, processor, CONCISE, family.images)
    torch.testing.assert_close(odds(compiled.score(GAMES)), expected, atol=1e-3, rtol=0)


def test_a_model_keeps_keys_in_a_quarter_of_what_is_free_unless_told_otherwise(family: Family) -> None:
    """Over HTTP or in process, a photo that comes again is found without any setting."""
    ref = ModelRef(path=str(family.checkpoint), min_pixels=784)
    total = torch.cuda.get_device_properties(0).total_memory
    model = open_model(ref, Runtime(device="cuda"), family.images)
    for _ in range(2):
        model.score(GAMES)
    kept = model.prompt_cache()
    assert kept is not None
    assert 0 < kept.max_bytes <= total // 4
    assert (kept.entries, kept.misses, kept.hits) == (3, 3, 3)
    assert open_model(ref, Runtime(device="cuda", prompt_cache_mib=0), family.images).prompt_cache() is None


@pytest.mark.parametrize("prompt_bytes", [0, 1 << 24])
def test_a_gpu_that_is_too_small_gets_smaller_rows(family: Family, whole_memory: None, prompt_bytes: int) -> None:
    """What is kept of photos is dropped first."""
    texts = tuple(f"A red mug number {number}." for number in range(200))
    games = [ScoreGame(candidates=tuple(SIZES), descriptions=texts)] * 8
    expected = odds(family.open().score(games))
    greedy = family.open(batch_tokens=10_000_000, prompt_bytes=prompt_bytes)
    greedy.score(GAMES)  # what is needed once
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (64 << 20)) / total)
    found = greedy.score(games)
    assert greedy._engine._batch_tokens < 10_000_000
    kept = greedy.prompt_cache()
    assert (kept is None) == (prompt_bytes == 0)
    assert kept is None or kept.max_bytes < prompt_bytes
    torch.testing.assert_close(odds(found), expected, atol=1e-3, rtol=0)
