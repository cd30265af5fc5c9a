"""The sampler against plain forward passes: tokens, log-probabilities, frequencies."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from PIL import Image

from lewis_core.config.base import ModelRef, Runtime
from lewis_core.models import sampling as sampling_module
from lewis_core.models import wide_products
from lewis_core.models.continuation import Prompt
from lewis_core.models.decoding import Table, arrange
from lewis_core.models.features import VisionEncoder, encoder_outputs
from lewis_core.models.fusing import fuse
from lewis_core.models.images import ImageFolder
from lewis_core.models.loading import load_model
from lewis_core.models.sampling import Sampler, Sampling, Written
from lewis_core.testing import write_image, write_tiny_checkpoint

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
NEVER: list[int] = []
"""No token ends a completion."""


@pytest.fixture(autouse=True)
def small_products_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models would never ask for those that large ones ask for."""
    monkeypatch.setattr(wide_products, "LEAST_WEIGHT", 0)


class World:
    """A model, and prompts of it: two images of different grids, one without image."""

    def __init__(self, folder: Path, family: str) -> None:
        write_tiny_checkpoint(folder / "model", family=family)
        for name, size, seed in (("a.jpg", (56, 84), 1), ("b.jpg", (112, 56), 2)):
            write_image(folder / name, seed)
            Image.open(folder / name).resize(size).save(folder / name)
        self.model, processor = load_model(ModelRef(path=str(folder / "model")), Runtime(device="cpu", torch_threads=1))
        self.image = int(self.model.config.image_token_id)
        encoder = VisionEncoder(self.model, processor.image_processor, ImageFolder(folder), 1 << 20, 1)
        features = encoder({"a": "a.jpg", "b": "b.jpg"})
        tokens = processor.tokenizer.encode("Describe it.", add_special_tokens=False)
        self.prompts = [
            Prompt([*tokens[:3], *[self.image] * len(features[name].tokens), *tokens], (features[name],))
            for name in "ab"
        ]
        self.prompts.append(Prompt(tokens))
        self.banned = [self.image, int(self.model.config.video_token_id)]

    def sampler(self, eos: Sequence[int] = NEVER, **changes: Any) -> Sampler:
        """A sampler of the model."""
        return Sampler(self.model, image_token_id=self.image, pad_id=0, eos_ids=eos, banned=self.banned, **changes)

    @torch.no_grad()
    def logits(self, prompt: Prompt, written: Sequence[int]) -> torch.Tensor:
        """Logits after the prompt and after each token that was written, by one plain forward pass."""
        ids = torch.tensor([[*prompt.ids, *written]])
        grid = torch.cat([image.grid for image in prompt.images]) if prompt.images else None
        positions, _ = self.model.model.get_rope_index(
            ids, mm_token_type_ids=(ids == self.image).int(), image_grid_thw=grid
        )
        images = encoder_outputs(prompt.images)
        logits: torch.Tensor = self.model(input_ids=ids, position_ids=positions, mm_encoder_outputs=images).logits[0]
        logits = logits[len(prompt.ids) - 1 :].double()
        logits[:, self.banned] = -torch.inf
        return logits


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], World]:
    worlds: dict[str, World] = {}

    def build(family: str) -> World:
        if family not in worlds:
            worlds[family] = World(tmp_path_factory.mktemp(family), family)
        return worlds[family]

    return build


@pytest.fixture
def world(build: Callable[[str], World]) -> World:
    return build("qwen2_vl")


def ids_of(written: Sequence[Written]) -> list[list[int]]:
    return [completion.ids for completion in written]


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_equal_those_of_plain_forward_passes(
    build: Callable[[str], World], family: str, fixed: bool
) -> None:
    world = build(family)
    greedy = Sampling(6, 0.0, 0)
    written = world.sampler(fixed_shapes=fixed).sample(world.prompts, [0, 1, 2], [greedy] * 3)
    for prompt, completion in zip(world.prompts, written, strict=True):
        expected: list[int] = []
        for _ in range(6):
            expected.append(int(world.logits(prompt, expected)[-1].argmax()))
        assert completion.ids == expected
        assert completion.end is None


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-6)])
def test_log_probabilities_equal_those_of_plain_forward_passes(
    build: Callable[[str], World], dtype: torch.dtype, tolerance: float
) -> None:
    """In float64 the norms inside the model still round to float32."""
    world = build("qwen2_5_vl")
    world.model.to(dtype)
    try:
        rows, draws = [0, 1, 1, 0, 2], [Sampling(9, 0.7, seed) for seed in range(5)]
        written = world.sampler().sample(world.prompts, rows, draws)
        for row, completion in zip(rows, written, strict=True):
            logits = world.logits(world.prompts[row], completion.ids)[:-1] / 0.7
            expected = logits.log_softmax(-1).gather(1, torch.tensor(completion.ids)[:, None])[:, 0]
            assert (expected - torch.tensor(completion.logps, dtype=torch.float64)).abs().max() < tolerance
    finally:
        world.model.to(torch.float32)


def chi_square(counts: Counter[int], probabilities: torch.Tensor) -> tuple[float, int]:
    """Statistic and degrees of freedom; tokens that are expected less than five times are put together."""
    total = sum(counts.values())
    expected = {token: total * p for token, p in enumerate(probabilities.tolist())}
    rest = [token for token, number in expected.items() if number < 5]
    cells = [(counts[token], number) for token, number in expected.items() if number >= 5]
    cells.append((sum(counts[token] for token in rest), sum(expected[token] for token in rest)))
    return sum((seen - number) ** 2 / number for seen, number in cells if number > 0), len(cells) - 1


def test_tokens_are_drawn_as_often_as_their_probabilities_say(world: World) -> None:
    """4000 completions of two tokens: the first token, and the second after the likeliest first one.

    A chi-square statistic with k degrees of freedom has mean k and variance 2 k; six deviations are allowed.
    """
    number = 4000
    written = world.sampler().sample(world.prompts, [0] * number, [Sampling(2, 0.4, seed) for seed in range(number)])
    first = Counter(completion.ids[0] for completion in written)
    (likeliest, times), *_ = first.most_common(1)
    second = Counter(completion.ids[1] for completion in written if completion.ids[0] == likeliest)
    assert times >= 100
    for counts, given_tokens in ((first, []), (second, [likeliest])):
        probabilities = (world.logits(world.prompts[0], given_tokens)[-1] / 0.4).softmax(-1)
        statistic, freedom = chi_square(counts, probabilities)
        assert freedom >= 5
        assert abs(statistic - freedom) < 6 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("fixed", [False, True])
def test_a_completion_depends_on_its_own_seed_only(world: World, fixed: bool) -> None:
    """Alone, among others, in another order, with ends that shrink the table: the same tokens."""
    sampler = world.sampler(eos=range(3, 30), fixed_shapes=fixed)
    rows = [0, 2, 0, 1, 0, 0, 1, 2, 1]
    draws = [Sampling(5 + row % 3 * 20, 1.0, 100 + row) for row in range(len(rows))]
    together = sampler.sample(world.prompts, rows, draws)
    assert len({len(completion.logps) for completion in together}) > 3  # they end at different times
    assert {completion.end is None for completion in together} == {True, False}
    order = [4, 1, 8, 3, 6, 0, 2, 7, 5]
    shuffled = sampler.sample(world.prompts, [rows[row] for row in order], [draws[row] for row in order])
    for place, row in enumerate(order):
        alone = sampler.sample([world.prompts[rows[row]]], [0], [draws[row]])[0]
        for other in (alone, shuffled[place]):
            assert (other.ids, other.end) == (together[row].ids, together[row].end)
            assert other.logps == pytest.approx(together[row].logps, abs=1e-4)
        assert len(together[row].logps) == len(together[row].ids) + (together[row].end is not None)


@pytest.mark.parametrize("limits", [(1, 1), (8, 3), (16, 5), (17, 32), (33, 33)])
@pytest.mark.parametrize("fixed", [False, True])
def test_no_step_follows_the_last_token(
    world: World, fixed: bool, limits: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far rows are looked at ahead of time; the first token of each row takes none."""
    steps: list[int] = []
    step = Table.step
    monkeypatch.setattr(Table, "step", lambda table: (steps.append(1), step(table))[1])
    sampler = world.sampler(eos=NEVER, fixed_shapes=fixed)
    written = sampler.sample(world.prompts, [0, 1], [Sampling(limit, 0.0, 0) for limit in limits])
    assert [len(one.ids) for one in written] == list(limits)
    assert len(steps) == max(limits) - 1


def test_tables_of_fixed_sizes_are_used_again(world: World) -> None:
    sampler = world.sampler(fixed_shapes=True)
    for seed, rows in enumerate(([0, 0, 1], [1, 0, 0], [0, 0, 1, 1])):
        draws = [Sampling(4 + seed, 1.0, 7 + row) for row in range(len(rows))]
        expected = world.sampler().sample(world.prompts, rows, draws)
        assert ids_of(sampler.sample(world.prompts, rows, draws)) == ids_of(expected)
    assert len(sampler._tables) == 1
    sampler.clear()
    assert not sampler._tables


def test_each_prompt_is_announced_once_when_its_last_completion_is_written(world: World) -> None:
    announced: list[tuple[int, dict[int, Written]]] = []
    rows = [1, 0, 1, 2, 0]
    draws = [Sampling(limit, 1.0, row) for row, limit in enumerate((9, 3, 2, 5, 4))]
    written = world.sampler().sample(world.prompts, rows, draws, lambda *found: announced.append(found))
    assert [prompt for prompt, _ in announced] == [0, 2, 1]  # after 4, 5 and 9 tokens
    assert [sorted(of_prompt) for _, of_prompt in announced] == [[1, 4], [3], [0, 2]]
    assert all(of_prompt[row] == written[row] for _, of_prompt in announced for row in of_prompt)


# PEFT 0.21 reads an attribute that transformers 5.23 has renamed.
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing. is deprecated:FutureWarning")
def test_an_adapter_is_part_of_what_is_sampled_and_no_weight_changes(world: World) -> None:
    rows, greedy = [0, 1], [Sampling(8, 0.0, 0)] * 2
    base = ids_of(world.sampler().sample(world.prompts, rows, greedy))
    plain, adapter = world.model, LoraConfig(r=2, target_modules=r".*language_model.*\.(q_proj|down_proj)")
    adapted = get_peft_model(plain, adapter)
    try:
        generator = torch.Generator().manual_seed(1)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3, generator=generator)
        before = {name: (value.data_ptr(), value.clone()) for name, value in adapted.state_dict().items()}
        sampler = Sampler(adapted.train(), image_token_id=world.image, pad_id=0, eos_ids=NEVER, banned=world.banned)
        written = sampler.sample(world.prompts, rows, greedy)  # by peft's layers
        assert fuse(adapted) > 0
        assert ids_of(sampler.sample(world.prompts, rows, greedy)) == ids_of(written)
        assert adapted.training
        after = adapted.eval().state_dict()
        for name, (place, value) in before.items():
            assert after[name].data_ptr() == place
            assert after[name].equal(value)
        assert ids_of(written) != base
        for prompt, completion in zip(world.prompts, written, strict=False):
            assert world.logits(prompt, completion.ids)[:-1].argmax(-1).tolist() == completion.ids  # layers in place
        kept = Sampler(
            adapted, image_token_id=world.image, pad_id=0, eos_ids=NEVER, banned=world.banned, fixed_shapes=True
        )
        kept.sample(world.prompts, rows, greedy)
        [table] = kept._tables.values()
        kept.sample(world.prompts, rows, greedy)
        assert list(kept._tables.values()) == [table]
        with adapted.disable_adapter():
            assert ids_of(kept.sample(world.prompts, rows, greedy)) == base
        assert list(kept._tables.values()) != [table]  # whose graphs would still have the adapter
        kept.sample(world.prompts, rows, greedy)
        [table] = kept._tables.values()
        for layer in adapted.modules():
            if hasattr(layer, "lora_A") and hasattr(layer, "scaling"):
                layer.scaling["default"] *= 2
        kept.sample(world.prompts, rows, greedy)
        assert list(kept._tables.values()) != [table]  # or the scale that it was captured with
    finally:
        adapted.unload()


def test_long_lists_of_prompts_are_read_in_parts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, draws = [0, 1, 2], [Sampling(4, 1.0, row) for row in range(3)]
    expected = ids_of(world.sampler().sample(world.prompts, rows, draws))
    monkeypatch.setattr(sampling_module, "PREFILL_TOKENS", 40)
    assert len(sampling_module._parts([len(prompt.ids) for prompt in world.prompts])) > 1
    assert ids_of(world.sampler().sample(world.prompts, rows, draws)) == expected


def test_nothing_to_write(world: World) -> None:
    assert world.sampler().sample(world.prompts, [], []) == []


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_a_table_holds_every_row_once_beside_rows_of_its_prompt(prompt_of_row: list[int]) -> None:
    prompts, rows = arrange(prompt_of_row)
    found = {row: prompt for prompt, of_prompt in zip(prompts, rows.tolist(), strict=True) for row in of_prompt}
    found.pop(-1, None)
    assert found == dict(enumerate(prompt_of_row))
    assert rows.shape[1] == max(Counter(prompt_of_row).values())
