"""Vision features: what they are kept under, how many at once, in which order."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lewis_core.config.base import ModelRef, Runtime
from lewis_core.errors import ModelError
from lewis_core.listener.schemas import CacheStatistics
from lewis_core.models import digests
from lewis_core.models.attention import IMAGE_ATTENTION, image_attention, use_packed_images
from lewis_core.models.caches import ByteCache
from lewis_core.models.features import ImageFeatures, VisionEncoder, backbone
from lewis_core.models.images import ImageFolder
from lewis_core.models.loading import load_model
from lewis_core.testing import write_image, write_tiny_checkpoint

SIZES = {"a.jpg": (56, 84), "b.jpg": (112, 56), "c.jpg": (140, 140), "d.jpg": (56, 56)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed, (name, size) in enumerate(SIZES.items()):
        write_image(folder / name, seed)
        Image.open(folder / name).resize(size).save(folder / name)
    return folder


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), family=request.param)
    return load_model(ModelRef(path=str(folder), max_pixels=1 << 20), Runtime(device="cpu", torch_threads=1))


@pytest.fixture
def encoder(loaded: tuple[Any, Any], root: Path) -> VisionEncoder:
    return VisionEncoder(loaded[0], loaded[1].image_processor, ImageFolder(root), 1 << 20, 2)


def calls(encoder: VisionEncoder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images of each pass through the vision tower from now on."""
    seen, real = [], encoder._run
    monkeypatch.setattr(encoder, "_run", lambda inputs: seen.append(len(inputs)) or real(inputs))
    return seen


def assert_same(found: dict[str, ImageFeatures], wanted: dict[str, ImageFeatures], tolerance: float) -> None:
    assert list(found) == list(wanted)
    for name, features in found.items():
        pairs = zip((features.tokens, *features.deepstack), (wanted[name].tokens, *wanted[name].deepstack), strict=True)
        for one, other in pairs:
            torch.testing.assert_close(one, other, atol=tolerance, rtol=0)


def test_the_cache_forgets_the_least_recently_used_and_counts() -> None:
    features = ImageFeatures(torch.zeros(4, 8), torch.zeros(1, 3))  # 4 x 8 x 4 bytes = 128
    cache: ByteCache[ImageFeatures] = ByteCache(max_bytes=300)
    assert cache.statistics().hit_rate == 0
    cache.put("a", features)
    cache.put("b", features)
    assert cache.get("a") is features
    cache.put("c", features)
    assert (len(cache), cache.get("b")) == (2, None)
    assert cache.get("a") is features
    cache.put("huge", ImageFeatures(torch.zeros(4, 80), torch.zeros(1, 3)))
    expected = CacheStatistics(entries=2, num_bytes=256, max_bytes=300, hits=2, misses=1, evictions=1)
    assert cache.statistics() == expected
    assert expected.hit_rate == pytest.approx(2 / 3)
    cache.clear()
    assert ("a" in cache, cache.num_bytes, cache.statistics().evictions) == (False, 0, 3)


def test_features_are_kept_under_image_settings_and_weights(
    encoder: VisionEncoder, loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = calls(encoder, monkeypatch)
    references = {name: name for name in SIZES}
    first = encoder(references)
    assert_same(encoder(references), first, 0)
    assert sum(seen) == 4

    settings = loaded[1].image_processor.size
    monkeypatch.setattr(loaded[1].image_processor, "size", type(settings)(shortest_edge=784, longest_edge=3136))
    assert len(encoder({"c.jpg": "c.jpg"})["c.jpg"].tokens) < len(first["c.jpg"].tokens)
    monkeypatch.setattr(loaded[1].image_processor, "size", settings)
    assert sum(seen) == 5

    weight = next(iter(backbone(loaded[0]).visual.parameters()))
    before = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(1.5)
    assert not torch.equal(encoder(references)["a.jpg"].tokens, first["a.jpg"].tokens)
    assert sum(seen) == 9
    with torch.no_grad():
        weight.copy_(before)
    assert_same(encoder(references), first, 0)
    assert sum(seen) == 9
    assert encoder.cache.statistics().entries == 4 + 1 + 4


def test_images_come_in_order_known_ones_among_them(encoder: VisionEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = {name: encoder({name: name})[name] for name in SIZES}
    fresh = VisionEncoder(encoder._backbone, encoder._processor, encoder._images, 1 << 20, 2)
    fresh({"b.jpg": "b.jpg"})
    monkeypatch.setattr(fresh, "_max_patches", 60)  # the others have 24, 100 and 16 patches: no two fit together
    seen = calls(fresh, monkeypatch)
    assert_same(dict(fresh.stream({name: name for name in SIZES})), alone, 2e-5)
    assert seen == [1, 1, 1]


def test_memory_that_runs_out_halves_the_pass(encoder: VisionEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    references = {name: name for name in SIZES}
    expected, real, seen = encoder(references), encoder._run, []
    fresh = VisionEncoder(encoder._backbone, encoder._processor, encoder._images, 0, 2)

    def small(inputs: Any) -> Any:
        seen.append(len(inputs))
        if len(inputs) > most:
            raise torch.OutOfMemoryError("out of memory")
        return real(inputs)

    most = 1
    monkeypatch.setattr(fresh, "_run", small)
    assert_same(fresh(references), expected, 2e-5)
    assert seen == [4, 2, 1, 1, 2, 1, 1]
    most = 0
    with pytest.raises(ModelError, match="does not fit"):
        fresh(references)


def test_many_images_in_one_call_equal_one_at_a_time(
    loaded: tuple[Any, Any], root: Path, encoder: VisionEncoder
) -> None:
    """The vision tower's attention over images (and Qwen2.5-VL's windows) of different grids."""
    references = {name: name for name in SIZES}
    expected = {name: encoder({name: name})[name] for name in SIZES}
    config = backbone(loaded[0]).visual.config
    before = config._attn_implementation
    use_packed_images(loaded[0])
    try:
        assert all(
            block.attn.config._attn_implementation == IMAGE_ATTENTION for block in encoder._backbone.visual.blocks
        )
        found = VisionEncoder(loaded[0], encoder._processor, encoder._images, 0, 2)(references)
    finally:
        config._attn_implementation = before
    assert_same(found, expected, 2e-5)


def test_what_the_tower_is_given_is_what_it_makes_itself(
    loaded: tuple[Any, Any], root: Path, encoder: VisionEncoder
) -> None:
    """Pixels are the processor's; positions, bounds, windows and weights of positions are transformers'."""
    found = encoder({name: name for name in SIZES})
    inputs = loaded[1].image_processor(images=[Image.open(root / name) for name in SIZES], return_tensors="pt")
    with torch.inference_mode():
        out = backbone(loaded[0]).get_image_features(**inputs, return_dict=True)
    for name, tokens in zip(SIZES, out.pooler_output, strict=True):
        assert torch.equal(found[name].tokens, tokens)


def test_attention_without_bounds_is_refused() -> None:
    query = torch.zeros(1, 1, 4, 8)
    with pytest.raises(ValueError, match="where its images begin"):
        image_attention(None, query, query, query, None)


@given(st.lists(st.floats(width=32), min_size=2, max_size=40), st.data())
def test_a_checksum_notices_every_change(values: list[float], data: st.DataObject) -> None:
    tensor = torch.tensor(values, dtype=torch.float32)
    place = data.draw(st.integers(0, len(values) - 1))
    flipped = tensor.view(torch.int32).clone()
    flipped[place] ^= 1 << data.draw(st.integers(0, 30))
    assert digests.checksum(flipped.view(torch.float32)) != digests.checksum(tensor)
    moved = tensor.view(torch.int32).roll(1)
    if not torch.equal(moved, tensor.view(torch.int32)):
        assert digests.checksum(moved.view(torch.float32)) != digests.checksum(tensor)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool])
def test_a_checksum_does_not_depend_on_its_chunks(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.arange(-50, 51).to(dtype).reshape(1, 101)
    whole = int(digests.checksum(tensor))
    monkeypatch.setattr(digests, "CPU_CHUNK", 7)
    assert int(digests.checksum(tensor)) == whole
