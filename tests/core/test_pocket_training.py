"""The whole build of the pocket models, at toy size."""

from pathlib import Path

import pytest

from lewis_core.pocket.training.config import (
    ClipTrainingConfig,
    PocketBuildConfig,
    StreamConfig,
    VlmTrainingConfig,
)
from lewis_core.pocket.training.measure import area_under_curve

TOY_MODEL = VlmTrainingConfig(
    size="test",
    see_seconds=0.5,
    learn_seconds=0.5,
    images_per_see_step=8,
    images_per_learn_step=8,
    exercise_scale=0.05,
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_models_are_built_and_load(tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from lewis_core.pocket.training.build import build_pocket_models

    stream = StreamConfig(num_images=32, chunk=16, num_renderers=1, num_writers=1, scratch_dir=tmp_path)
    config = PocketBuildConfig(
        base_stream=stream,
        base=TOY_MODEL,
        clip=ClipTrainingConfig(seconds=0.5, batch=8),
        listener_stream=stream.model_copy(update={"seed": 2}),
        listener=TOY_MODEL.model_copy(update={"seed": 2}),
        device="cpu",
    )
    build_pocket_models(tmp_path / "models", config)
    assert not list(tmp_path.glob("pocket-*"))
    for name in ("base", "listener"):
        assert AutoProcessor.from_pretrained(tmp_path / "models" / name).tokenizer.padding_side == "left"
        model = AutoModelForImageTextToText.from_pretrained(tmp_path / "models" / name)
        assert model.config.text_config.num_hidden_layers == 2
    assert (tmp_path / "models/clip/open_clip_model.safetensors").is_file()


def test_area_under_curve_counts_ordered_pairs() -> None:
    import torch

    scores, labels = torch.tensor([3.0, 1.0, 2.0, 1.0]), torch.tensor([True, True, False, False])
    assert area_under_curve(scores, labels) == (1 + 1 + 0 + 0.5) / 4
