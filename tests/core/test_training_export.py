"""An adapter that is merged into its base: the same answers, or an error with the numbers and nothing kept."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.chaos.world import POCKET, RUNTIME, settings, write_photos
from lewis_core.config.base import ModelRef
from lewis_core.errors import MergeError, ModelError
from lewis_core.models.files import resolve_model_path
from lewis_core.models.loading import load_model
from lewis_core.testing import write_tiny_checkpoint
from lewis_core.training import export, shards
from lewis_core.training.assemble import adapter_config

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing. is deprecated:FutureWarning")  # peft 0.21


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two mugs."""
    return export.find_photos(write_photos(tmp_path_factory.mktemp("photos")) / "test" / "mug", 2)


@pytest.fixture(scope="module")
def ref(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    """The pocket base with an adapter that matters."""
    from peft import get_peft_model

    folder = tmp_path_factory.mktemp("adapter")
    model, _ = load_model(POCKET, RUNTIME)
    adapted: Any = get_peft_model(model, adapter_config(model, settings().lora))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    adapted.save_pretrained(folder)
    return POCKET.model_copy(update={"adapter": folder})


def test_a_merged_model_answers_as_before_and_loads_like_any_other(
    ref: ModelRef, photos: list[Path], tmp_path: Path
) -> None:
    check = export.export_merged(ref, tmp_path / "merged", photos, RUNTIME, category="mug", max_new_tokens=16)
    assert (check.changed_frac, check.same_text_frac, check.photos) == (0.0, 1.0, 2)
    assert check.max_shift < 1e-3
    assert check.tokens >= 16
    assert json.loads((tmp_path / "merged" / export.CHECK).read_text())["tokens"] == check.tokens
    merged, _ = load_model(POCKET.model_copy(update={"path": str(tmp_path / "merged")}), RUNTIME)
    base, _ = load_model(POCKET, RUNTIME)
    weights = [model.state_dict()["model.language_model.layers.0.self_attn.q_proj.weight"] for model in (merged, base)]
    assert (weights[0] - weights[1]).abs().max() > 1e-3
    with pytest.raises(ModelError, match="merged exists; give a folder that does not"):
        export.export_merged(ref, tmp_path / "merged", photos, RUNTIME)


def test_a_merge_that_loses_the_adapter_is_refused_with_the_numbers(
    ref: ModelRef, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = export.write_merged
    monkeypatch.setattr(
        export, "write_merged", lambda ref, folder, runtime: write(_empty(ref, tmp_path), folder, runtime)
    )
    with pytest.raises(MergeError, match=r"would write \d+\.\d% of \d+ tokens otherwise .*2\.0%.*Nothing was kept"):
        export.export_merged(ref, tmp_path / "merged", photos, RUNTIME, category="mug", max_new_tokens=16)
    assert not list(tmp_path.glob("*merged*"))


def _empty(ref: ModelRef, folder: Path) -> ModelRef:
    """The same adapter without its weights' effect."""
    from safetensors.torch import load_file, save_file

    assert ref.adapter is not None
    (folder / "empty").mkdir()
    tensors = load_file(ref.adapter / "adapter_model.safetensors")
    save_file({n: t * ("lora_B" not in n) for n, t in tensors.items()}, folder / "empty" / "adapter_model.safetensors")
    settings_file = (ref.adapter / "adapter_config.json").read_text()
    (folder / "empty" / "adapter_config.json").write_text(settings_file)
    return ref.model_copy(update={"adapter": folder / "empty"})


def test_merged_files_hold_what_peft_makes_of_the_whole_model(
    ref: ModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 1 << 20)
    for dtype in ("float32", "bfloat16"):
        out = tmp_path / dtype
        export.write_merged(ref.model_copy(update={"dtype": dtype}), out, RUNTIME)
        index = json.loads((out / shards.INDEX).read_text())
        files = {path.name: path.stat().st_size for path in out.glob("*.safetensors")}
        assert set(files) == set(index["weight_map"].values())
        assert len(files) > 2
        assert index["metadata"]["total_size"] < sum(files.values()) < 1.05 * index["metadata"]["total_size"]
        assert json.loads((out / "config.json").read_text())["dtype"] == dtype
        merged, _ = load_model(POCKET.model_copy(update={"path": str(out), "dtype": dtype}), RUNTIME)
        whole, _ = load_model(ref.model_copy(update={"dtype": "float32"}), RUNTIME)
        wanted = whole.merge_and_unload().to(getattr(torch, dtype)).state_dict()
        found = merged.state_dict()
        assert found.keys() == wanted.keys()
        for name, weight in found.items():
            torch.testing.assert_close(weight, wanted[name], rtol=1e-6 if dtype == "float32" else 0.008, atol=1e-6)


def test_an_adapter_of_another_model_is_refused_by_name(ref: ModelRef, tmp_path: Path) -> None:
    assert ref.adapter is not None
    additions = shards.read_plain_adapter(ref.adapter)
    assert additions is not None
    base = Path(resolve_model_path(POCKET.path))
    [name, *_] = additions
    with pytest.raises(ModelError, match=r"no weights of layers\.99\.mlp\.up_proj"):
        shards.merge_files(base, {"layers.99.mlp.up_proj": additions[name]}, tmp_path / "a", torch.float32)
    cut = dataclasses.replace(additions[name], b=additions[name].b[:-1])
    with pytest.raises(ModelError, match=r"the adapter adds .* numbers to a weight of"):
        shards.merge_files(base, {name: cut}, tmp_path / "b", torch.float32)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_weights_that_were_trained_whole_are_named_as_in_the_base(family: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = write_tiny_checkpoint(tmp_path / "base", family=family)
    [file] = base.glob("*.safetensors")
    weights = load_file(file)
    trained = {name: weight + 1 for name, weight in weights.items()}
    spread = {"model." + name.replace("language_model.", ""): weight for name, weight in trained.items()}
    (tmp_path / "spread").mkdir()
    save_file(spread | {"lm_head.weight": torch.zeros(1)}, tmp_path / "spread" / "model.safetensors")
    shards.copy_weights(tmp_path / "spread", base, tmp_path / "out")
    [file] = (tmp_path / "out").glob("*.safetensors")
    found = load_file(file)
    assert found.keys() == weights.keys()
    assert all(found[name].equal(weight) for name, weight in trained.items())


@pytest.mark.parametrize("changed", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"rank_pattern": {"q": 2}}])
def test_what_is_no_plain_adapter_is_left_to_peft(ref: ModelRef, tmp_path: Path, changed: dict[str, Any]) -> None:
    assert ref.adapter is not None
    shutil.copytree(ref.adapter, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    assert shards.read_plain_adapter(tmp_path / "adapter") is None


def test_differences_by_hand() -> None:
    def answer(written: list[int], likeliest: list[int], probabilities: list[float]) -> export.Answer:
        return export.Answer(torch.tensor(written), torch.tensor(likeliest), torch.tensor(probabilities).log())

    before = answer([0, 1], [0, 1], [0.8, 0.6])
    after = answer([0, 0], [0, 0], [0.8, 0.3])
    check = export.compare([before], [after], "torch.bfloat16")
    assert (check.changed_frac, check.same_text_frac, check.tokens) == (0.5, 0.0, 2)
    assert check.max_shift == pytest.approx(0.6931, abs=1e-3)  # log(0.6 / 0.3)
    assert check.mean_shift == pytest.approx(0.3466, abs=1e-3)
    assert not check.fits(export.Tolerance())
    assert check.fits(export.Tolerance(changed_frac=0.5, mean_shift=0.4))


def test_the_command_says_what_is_wrong(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    adapter = tmp_path / "no adapter"
    arguments = [
        "--model",
        "pocket:base",
        "--adapter",
        str(adapter),
        "--photos",
        str(tmp_path),
        "--out",
        str(tmp_path / "m"),
    ]
    assert export.main(arguments) == 1
    assert "no photos to compare answers on" in caplog.text
