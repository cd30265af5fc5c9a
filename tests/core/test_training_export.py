"""An adapter that is merged into its base: the same answers, or an error with the numbers and nothing kept."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.chaos.world import POCKET, RUNTIME, settings, write_photos
from lewis_core.config.base import ModelRef
from lewis_core.errors import MergeError, ModelError
from lewis_core.models.loading import load_model
from lewis_core.training import export
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


def test_differences_by_hand() -> None:
    def answer(written: list[int], probabilities: list[list[float]]) -> export.Answer:
        return export.Answer(torch.tensor(written), torch.tensor(probabilities).log())

    before = answer([0, 1], [[0.8, 0.2], [0.4, 0.6]])
    after = answer([0, 0], [[0.8, 0.2], [0.7, 0.3]])
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
