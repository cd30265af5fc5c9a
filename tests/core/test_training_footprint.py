"""Memory by config.json alone, against the models that transformers builds, and against what was measured on GPUs."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from lewis_core.config.base import ModelRef
from lewis_core.config.grpo import GrpoConfig
from lewis_core.errors import ConfigError, ModelError
from lewis_core.training.footprint import (
    GIB,
    KNOWN,
    check_memory,
    estimate_footprint,
    read_shape,
    service_bytes,
    shape_of,
    tell,
)


def settings(path: str = "Qwen/Qwen2-VL-7B-Instruct", **changes: Any) -> GrpoConfig:
    model = {"path": path, "dtype": "bfloat16", "max_pixels": 256 * 28 * 28, **changes.pop("model", {})}
    return GrpoConfig.model_validate({"model": model, "prompts_per_step": 4, **changes})


def built(kind: str, **sections: Any) -> Any:
    """A model of transformers without memory, and its settings."""
    config = AutoConfig.for_model(kind, **sections)
    loader: Any = AutoModelForImageTextToText
    with torch.device("meta"):
        return loader.from_config(config), config


CASES = {
    "qwen2-vl-7b": ("qwen2_vl", {"embed_dim": 1280, "depth": 32, "mlp_ratio": 4, "hidden_size": 3584}),
    "qwen2.5-vl-3b": (
        "qwen2_5_vl",
        {"hidden_size": 1280, "depth": 32, "intermediate_size": 3420, "out_hidden_size": 2048},
    ),
    "qwen3-vl-8b": (
        "qwen3_vl",
        {
            "hidden_size": 1152, "depth": 27, "intermediate_size": 4304, "out_hidden_size": 4096, "patch_size": 16,
            "deepstack_visual_indexes": [8, 16, 24],
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_parameters_are_those_of_the_real_model(name: str) -> None:
    kind, vision = CASES[name]
    known = KNOWN[name]
    is_tied = known.get("tie_word_embeddings", False)
    text = {key: value for key, value in known.items() if key not in ("vision_config", "tie_word_embeddings")}
    model, config = built(kind, text_config=text, vision_config=vision, tie_word_embeddings=is_tied)
    shape = shape_of(config.to_dict())
    language = sum(p.numel() for p in {id(p): p for n, p in model.named_parameters() if "visual" not in n}.values())
    tower = sum(p.numel() for n, p in model.named_parameters() if "visual" in n)
    assert shape.language_parameters == pytest.approx(language, rel=0.002)
    assert shape.vision_parameters == pytest.approx(tower, rel=0.03)
    assert shape_of(known).language_parameters == shape.language_parameters  # the table says the same


def test_the_table_serves_hub_ids_and_folders_serve_themselves(tmp_path: Any) -> None:
    assert read_shape("Qwen/Qwen2-VL-7B-Instruct") == shape_of(KNOWN["qwen2-vl-7b"])
    assert read_shape("somebody/else") is None
    assert read_shape("pocket:base") is not None
    (tmp_path / "config.json").write_text('{"hidden_size": 8}', encoding="utf-8")
    with pytest.raises(ModelError, match="does not say how large the model is"):
        read_shape(str(tmp_path))


def test_an_adapter_has_as_many_weights_as_peft_makes() -> None:
    shape = read_shape("Qwen/Qwen2-VL-7B-Instruct")
    assert shape is not None
    assert shape.adapter_parameters(64, ["q_proj"]) == 28 * 64 * (3584 + 3584)
    every = settings().lora.target_modules
    assert shape.adapter_parameters(64, every) == pytest.approx(161.5e6, rel=0.001)  # known of this model


def test_measured_peaks_are_met() -> None:
    """One H100, 7B, r 64, 4 prompts of 256 visual tokens with 8 completions of 128: see infra/docs/training.md."""
    shape = read_shape("Qwen/Qwen2-VL-7B-Instruct")
    assert shape is not None
    zero2 = settings(num_processes=2, prompts_per_step=8, distributed={"strategy": "zero2"})
    found = estimate_footprint(zero2, shape)
    assert found.usual / GIB == pytest.approx(44.1, rel=0.15)  # what PyTorch had reserved
    assert found.weights / GIB == pytest.approx(15.4, rel=0.02)
    checkpointed = settings(gradient_checkpointing=True, prompts_per_step=1)
    assert estimate_footprint(checkpointed, shape).least / GIB == pytest.approx(20.7, rel=0.15)


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    shape = read_shape("Qwen/Qwen2-VL-7B-Instruct")
    assert shape is not None
    config = settings()
    found = estimate_footprint(config, shape)
    with pytest.raises(ConfigError) as error:
        check_memory(config, found, [16 * GIB, 80 * GIB])
    said = str(error.value)
    assert "needs about" in said
    assert "the smallest has 16 GiB: use training.distributed.strategy = 'zero3'" in said
    assert "memory_check = 'warn'" in said
    warned = check_memory(settings(memory_check="warn"), found, [16 * GIB])
    assert warned is not None
    assert check_memory(config, found, [200 * GIB]) is None
    assert "activations will be computed again" in str(check_memory(config, found, [30 * GIB]))
    assert check_memory(config, found, []) is None
    assert tell(config, found).startswith("Qwen/Qwen2-VL-7B-Instruct needs about")


def test_a_listener_on_the_same_gpu_is_counted() -> None:
    shape = read_shape("Qwen/Qwen2-VL-7B-Instruct")
    assert shape is not None
    config = settings()
    listener = service_bytes(config.model)
    assert listener / GIB == pytest.approx(15.4 + 2.6 + 2 + 1.5, rel=0.02)  # weights, a pass, vision features, CUDA
    assert service_bytes(ModelRef(path="somebody/unknown")) == 0
    found = estimate_footprint(config, shape, beside=listener)
    alone = estimate_footprint(config, shape)
    assert (found.least - alone.least, found.usual - alone.usual) == pytest.approx((listener, listener))
    assert check_memory(config, alone, [40 * GIB]) is not None  # a warning: not at full speed
    with pytest.raises(ConfigError, match=r"services on the same GPU 21\..*40 GiB: use one GPU more, .*run.services"):
        check_memory(config, found, [40 * GIB])


def test_full_finetuning_needs_what_is_well_known() -> None:
    """Beside the weights: gradients 2 bytes a weight, copies and states of AdamW 12, all of it spread over 8."""
    shape = read_shape("Qwen/Qwen2-VL-7B-Instruct")
    assert shape is not None
    config = settings(
        full_finetuning=True, beta=0.0, num_processes=8, prompts_per_step=8, distributed={"strategy": "zero2"}
    )
    found = estimate_footprint(config, shape)
    assert found.trained == pytest.approx(shape.language_parameters * 14 / 8)
    assert found.update == pytest.approx(shape.language_parameters * 6 / 8)  # a flat copy of gradients, one in float32


def test_the_reference_of_full_finetuning_is_spread_as_the_model_is() -> None:
    shape = read_shape("Qwen/Qwen2-VL-7B-Instruct")
    assert shape is not None

    def kept(strategy: str, beta: float) -> float:
        changes = {"full_finetuning": True, "beta": beta, "num_processes": 8, "prompts_per_step": 8}
        return estimate_footprint(settings(distributed={"strategy": strategy}, **changes), shape).trained

    whole = (shape.language_parameters + shape.vision_parameters) * 2
    shares = {strategy: kept(strategy, 0.04) - kept(strategy, 0.0) for strategy in ("zero2", "zero3", "zero3_offload")}
    assert shares == pytest.approx({"zero2": whole, "zero3": whole / 8, "zero3_offload": 0.0})
