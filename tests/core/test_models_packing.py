"""Packed rows against one plain forward pass per sequence: logits, log-probabilities, gradients."""

import copy
import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from PIL import Image

from lewis_core.config.base import ModelRef, Runtime
from lewis_core.models import attention, wide_products
from lewis_core.models.attention import use_shared_prefix
from lewis_core.models.continuation import Prompt
from lewis_core.models.features import ImageFeatures, VisionEncoder, encoder_outputs
from lewis_core.models.fusing import fuse
from lewis_core.models.images import ImageFolder
from lewis_core.models.layout import Layout, Span
from lewis_core.models.loading import load_model
from lewis_core.models.packing import IGNORE, Beginning, Group, batches, last_logits, pack
from lewis_core.testing import write_image, write_tiny_checkpoint

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
ATTENTIONS = ("shared_prefix", "sdpa", "eager")
SIZES = {"a.jpg": (56, 84), "b.jpg": (112, 56)}
LAST, FIRST = [11, 4], [9, 3, 7]  # tokens before, between and after images
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-9}
"""Largest differences of values of about 10."""
GRADIENT_TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-6}
"""Relative to the largest gradient; RMSNorm is float32 inside a float64 model."""


@pytest.fixture(autouse=True)
def small_products_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models would never ask for those that large ones ask for."""
    monkeypatch.setattr(wide_products, "LEAST_WEIGHT", 0)


class World:
    """A model in two precisions, with adapters, and its features of two images of different grids."""

    def __init__(self, folder: Path, family: str) -> None:
        write_tiny_checkpoint(folder / "model", family=family)
        for seed, (name, size) in enumerate(SIZES.items()):
            write_image(folder / name, seed)
            Image.open(folder / name).resize(size).save(folder / name)
        model, processor = load_model(ModelRef(path=str(folder / "model")), Runtime(device="cpu", torch_threads=1))
        self.image = int(model.config.image_token_id)
        encoder = VisionEncoder(model, processor.image_processor, ImageFolder(folder), 1 << 20, 1)
        self.features = list(encoder({name: name for name in SIZES}).values())
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft asks transformers for a deprecated name
            adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", exclude_modules=".*visual.*"))
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        fuse(adapted)
        self.models = {torch.float32: adapted.eval(), torch.float64: copy.deepcopy(adapted).double().eval()}

    def prompt(self, images: Sequence[int], dtype: torch.dtype) -> Prompt:
        """A prompt about some of the images, text in between."""
        chosen = [self.features[index] for index in images]
        ids = list(FIRST)
        for features in chosen:
            ids += [self.image] * len(features.tokens) + [5]
        cast = [
            ImageFeatures(f.tokens.to(dtype), f.grid, tuple(layer.to(dtype) for layer in f.deepstack)) for f in chosen
        ]
        return Prompt(ids + LAST, tuple(cast))

    def plain(self, model: Any, prompt: Prompt, suffix: Sequence[int]) -> torch.Tensor:
        """Logits (prompt and suffix tokens, vocabulary) of one ordinary forward pass."""
        ids = torch.tensor([[*prompt.ids, *suffix]])
        grids = torch.cat([image.grid for image in prompt.images]) if prompt.images else None
        base = model.get_base_model().model
        positions = base.get_rope_index(ids, mm_token_type_ids=(ids == self.image).int(), image_grid_thw=grids)[0]
        with _attending(model, "sdpa"):
            out: torch.Tensor = model(
                input_ids=ids, position_ids=positions, mm_encoder_outputs=encoder_outputs(prompt.images)
            ).logits[0]
        return out


class _attending:  # noqa: N801 - used like a function
    def __init__(self, model: Any, name: str) -> None:
        self.text, self.name = model.get_base_model().model.language_model, name

    def __enter__(self) -> None:
        self.before = self.text.config._attn_implementation
        self.text.set_attn_implementation(self.name)

    def __exit__(self, *_: object) -> None:
        self.text.set_attn_implementation(self.before)


@pytest.fixture(scope="module", params=FAMILIES)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("packing"), request.param)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


suffixes = st.lists(st.lists(st.integers(12, 90), min_size=1, max_size=7), min_size=1, max_size=4)
work = st.lists(
    st.tuples(st.sampled_from([(), (0,), (1,), (0, 1), (1, 1)]), suffixes),
    min_size=1,
    max_size=3,
)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ATTENTIONS)
@given(work=work)
@settings(max_examples=6, deadline=None)
def test_answers_equal_separate_forward_passes(world: World, name: str, dtype: torch.dtype, work: Any) -> None:
    """Ragged questions; prompts with no image, one, and several of different grids; any number of groups."""
    model = world.models[dtype]
    prompts = [world.prompt(images, dtype) for images, _ in work]
    groups = [Group.of_questions(prompt, of_prompt) for prompt, (_, of_prompt) in zip(prompts, work, strict=True)]
    with torch.no_grad(), _attending(model, name):
        found = last_logits(model, pack(model, groups, world.image))
    with torch.no_grad():
        expected = [
            world.plain(model, prompt, question)[-1]
            for prompt, (_, questions) in zip(prompts, work, strict=True)
            for question in questions
        ]
    tolerance = TOLERANCE[dtype] if name != "eager" else 2e-5  # transformers' eager softmax is float32
    torch.testing.assert_close(found, torch.stack(expected), atol=tolerance, rtol=0)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_log_probabilities_and_gradients_equal_separate_sequences(
    world: World, dtype: torch.dtype, checkpointing: bool
) -> None:
    model = world.models[dtype]
    prompts = [world.prompt(images, dtype) for images in ((0,), (1, 0), ())]
    completions = [[[31, 32, 33], [40]], [[21, 22], [23, 24, 25, 26, 27], [28]], [[50, 51]]]
    groups = [
        Group.of_completions(p, [torch.tensor(c) for c in of_p]) for p, of_p in zip(prompts, completions, strict=True)
    ]
    weights = torch.linspace(-1, 1, 14, dtype=dtype)
    expected, at = [], 0
    for prompt, completion in ((p, c) for p, of_p in zip(prompts, completions, strict=True) for c in of_p):
        logits = world.plain(model, prompt, completion)[len(prompt.ids) - 1 : -1]
        logps = logits.log_softmax(-1).gather(-1, torch.tensor(completion)[:, None])[:, 0]
        (logps * weights[at : at + len(completion)]).sum().backward()
        expected.append(logps.detach())
        at += len(completion)
    wanted = gradients(model)

    model.train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    packed = pack(model, groups, world.image)
    with _attending(model, "shared_prefix"):
        kept = packed.labels != IGNORE
        logits = model(**packed.forward_arguments(model), logits_to_keep=kept).logits
        found = logits.log_softmax(-1).gather(-1, packed.labels[kept][:, None])[:, 0]
        (found * weights).sum().backward()
    model.activation_checkpointing_disable()
    model.eval()
    torch.testing.assert_close(found.detach(), torch.cat(expected), atol=TOLERANCE[dtype], rtol=0)
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    assert largest > 0
    assert gradients_differ(gradients(model), wanted) <= GRADIENT_TOLERANCE[dtype] * largest


def gradients_differ(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    assert found.keys() == wanted.keys()
    return max(float((found[name] - gradient).abs().max()) for name, gradient in wanted.items())


def test_a_completion_s_neighbours_do_not_matter(world: World) -> None:
    model = world.models[torch.float64]
    prompt = world.prompt((0,), torch.float64)
    questions = [[20, 21], [30], [40, 41, 42]]
    with torch.no_grad(), _attending(model, "shared_prefix"):
        for order in itertools.permutations(range(3)):
            group = Group.of_questions(prompt, [questions[index] for index in order])
            found = last_logits(model, pack(model, [group], world.image))
            if order == (0, 1, 2):
                first = found
            torch.testing.assert_close(found, first[list(order)], atol=1e-6, rtol=0)


def test_ordinary_calls_are_transformers_own(world: World) -> None:
    model, prompt = world.models[torch.float32], world.prompt((0,), torch.float32)
    expected = world.plain(model, prompt, [20, 21])
    before = model.get_base_model().model.language_model.config._attn_implementation
    use_shared_prefix(model)
    ids = torch.tensor([[*prompt.ids, 20, 21]])
    out = model(
        input_ids=ids,
        mm_token_type_ids=(ids == world.image).int(),
        image_grid_thw=prompt.images[0].grid,
        mm_encoder_outputs=encoder_outputs(prompt.images),
    ).logits[0]
    model.get_base_model().model.language_model.set_attn_implementation(before)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


# Layout, by hand ---------------------------------------------------------------------------------------------------


def test_a_row_as_written_out_by_hand() -> None:
    """Two groups: a prompt of 2 with suffixes of 1 and 2, and a prompt of 1 with one of 1."""
    layout = Layout([Span(0, 2, (1, 2)), Span(5, 1, (1,))], torch.device("cpu"))
    varlen = layout.varlen
    assert varlen.cu_queries.tolist() == [0, 2, 3, 5, 6, 7]
    assert varlen.cu_keys.tolist() == [0, 2, 5, 9, 10, 12]
    assert varlen.gather.tolist() == [0, 1, 0, 1, 2, 0, 1, 3, 4, 5, 5, 6]
    assert (varlen.max_queries, varlen.max_keys) == (2, 4)
    table = layout.runs[0]
    assert table.index.tolist() == [[0, 0], [1, 2]]
    assert table.used.tolist() == [[True, False], [True, True]]
    assert table.hidden.tolist() == [[False, True], [False, False]]


def test_a_row_that_begins_with_kept_tokens_as_written_out_by_hand() -> None:
    """Three tokens of which two are kept; then one that is kept whole: of 3 tokens in the row, keys 3 to 5 lie behind.

    The first prompt's rest is its third token, which sees all three; its suffix is one token, and so is the other's.
    """
    kept = [torch.zeros(1, 2, length, 1, 4) for length in (2, 1)]
    layout = Layout([Span(0, 1, (1,), 2), Span(2, 0, (1,), 1)], torch.device("cpu"), kept)
    varlen = layout.varlen
    assert varlen.cu_queries.tolist() == [0, 1, 2, 3]
    assert varlen.cu_keys.tolist() == [0, 3, 7, 9]
    assert varlen.gather.tolist() == [3, 4, 0, 3, 4, 0, 1, 5, 2]
    assert layout.runs[0].visible.tolist() == [[True, True, True]]
    assert [len(x) for x in layout.keys(0, torch.zeros(3, 1, 4), torch.zeros(3, 1, 4))] == [6, 6]


def test_attention_by_sequences_is_attention_by_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU is given, with its kernel written out: the last query of a sequence sees all keys of it."""

    def flash(query: Any, key: Any, value: Any, bounds: Any, scale: float, *, is_causal: bool) -> torch.Tensor:
        out = []
        for (a, b), (c, d) in zip(*(itertools.pairwise(x.tolist()) for x in bounds[:2]), strict=True):
            mask = torch.ones(b - a, d - c, dtype=torch.bool).tril(d - c - (b - a))
            q, k, v = (x.transpose(0, 1) for x in (query[a:b], key[c:d], value[c:d]))
            attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True)
            out.append(attended.transpose(0, 1))
        return torch.cat(out)

    monkeypatch.setattr(attention, "_flash", flash)
    torch.manual_seed(0)
    spans, at = [], 0
    for kept, prompt, suffixes in ((3, 2, (1, 4)), (3, 2, (1, 4)), (0, 5, (2,)), (4, 0, (3, 3)), (0, 0, (2,))):
        spans.append(Span(at, prompt, suffixes, kept))
        at = spans[-1].end
    stores = [torch.randn(1, 2, span.kept, 2, 8, dtype=torch.double) for span in spans if span.kept]
    layout = Layout(spans, torch.device("cpu"), stores)
    query, key, value = (torch.randn(at, heads, 8, dtype=torch.double) for heads in (4, 2, 2))
    key, value = layout.keys(0, key, value)
    by_sequences = attention._attend_varlen(query, key, value, layout, 0.5)
    torch.testing.assert_close(attention._attend_by_span(query, key, value, layout, 0.5), by_sequences)


def test_a_dense_mask_has_no_place_for_kept_keys(world: World) -> None:
    group = Group.of_questions(Prompt([4]), [[20]], before=Beginning(torch.zeros(1, 2, 3, 1, 4), 3))
    packed = pack(world.models[torch.float32], [group], world.image)
    assert packed.position_ids[0, 0].tolist() == [3, 4]
    with pytest.raises(ValueError, match="shared_prefix"):
        packed.mask()


def test_what_sees_what(world: World) -> None:
    prompt = Prompt([9, 3])
    groups = [Group.of_questions(prompt, [[20], [21, 22]]), Group.of_completions(prompt, [torch.tensor([30, 31])])]
    packed = pack(world.models[torch.float32], groups, world.image)
    assert packed.input_ids.tolist() == [[9, 3, 20, 21, 22, 9, 3, 30]]
    assert packed.position_ids[:, 0].tolist() == [[0, 1, 2, 2, 3, 0, 1, 2]] * 3
    assert packed.labels.tolist() == [[-100] * 6 + [30, 31]]
    assert packed.last.tolist() == [2, 4, 7]
    assert packed.mask()[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 0, 1, 0, 0, 0, 0],
        [1, 1, 0, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1, 1, 1],
    ]


def test_empty_suffixes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        Group.of_questions(Prompt([1]), [[2], []])
    with pytest.raises(ValueError, match="leave empty ones out"):
        Group.of_completions(Prompt([1]), [torch.tensor([], dtype=torch.long)])
    with pytest.raises(ValueError, match="at least one suffix"):
        Group.of_questions(Prompt([1]), [])


def test_batches_keep_order_and_budget() -> None:
    """A prompt of 3 tokens and suffixes of 2: a budget of 8 holds two suffixes, and a second prompt has to wait."""
    groups = [Group.of_questions(Prompt([1, 2, 3]), [[n, n] for n in range(3)]), Group.of_questions(Prompt([4]), [[9]])]
    found = [[[s.tolist() for s in group.suffixes] for group in batch] for batch in batches(groups, 8)]
    assert found == [[[[0, 0], [1, 1]]], [[[2, 2]], [[9]]]]
    assert [[group.tokens for group in batch] for batch in batches(groups, 8)] == [[7], [5, 2]]


def test_batches_keep_a_budget_of_kept_tokens() -> None:
    """Three prompts of which 4 tokens each are kept: 8 hold two of them, however little the row has."""
    kept = Beginning(torch.zeros(1, 2, 4, 1, 4), 4)
    groups = [Group.of_questions(Prompt([]), [[number]], before=kept) for number in range(3)]
    assert [[group.kept_tokens for group in batch] for batch in batches(groups, 8)] == [[4, 4], [4]]


def test_one_that_does_not_fit_still_runs() -> None:
    group = Group.of_questions(Prompt([1] * 50), [[2], [3]])
    assert [[g.tokens for g in batch] for batch in batches([group], 8)] == [[51], [51]]
