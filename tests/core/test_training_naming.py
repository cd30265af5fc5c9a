"""Names of trained models."""

from pathlib import Path

import pytest

from lewis_core.config.base import ModelRef
from lewis_core.config.data import FolderSource, PocketSource
from lewis_core.config.grpo import LoraSettings
from lewis_core.config.listener_training import TrainListenerConfig
from lewis_core.config.training import TrainSpeakerConfig
from lewis_core.training.naming import dataset_name, trained_name

BIG = ModelRef(path="Qwen/Qwen2.5-VL-7B-Instruct")


def test_a_speaker_is_named_as_in_the_reference() -> None:
    config = TrainSpeakerConfig(model=BIG, listener=BIG, seed=23, lora=LoraSettings(r=64, alpha=128))
    assert trained_name(config, "PerVA") == "Qwen2.5-VL-7B_GRPO_lewis_PerVA_seed_23_r64_a128"


@pytest.mark.parametrize(
    ("path", "dataset", "name"),
    [
        pytest.param("pocket:base", "pocket", "pocket-base_GRPO_lewis_pocket_seed_0_r8_a16", id="pocket"),
        pytest.param("models/mine/", "my photos", "mine_GRPO_lewis_my-photos_seed_0_r8_a16", id="signs"),
    ],
)
def test_signs_that_registries_refuse_are_replaced(path: str, dataset: str, name: str) -> None:
    model = ModelRef(path=path)
    config = TrainSpeakerConfig(model=model, listener=model, lora=LoraSettings(r=8, alpha=16))
    assert trained_name(config, dataset) == name


def test_listeners_and_whole_models_are_told_apart() -> None:
    whole = TrainSpeakerConfig(model=BIG, listener=BIG, full_finetuning=True)
    assert trained_name(whole, "d") == "Qwen2.5-VL-7B_GRPO_lewis_d_seed_0_full"
    assert trained_name(TrainListenerConfig(model=BIG), "d") == "Qwen2.5-VL-7B_GRPO_listener_d_seed_0_r64_a128"


def test_photos_are_called_by_their_folder() -> None:
    assert dataset_name(FolderSource(type="folder", root=Path("data/PerVA"))) == "PerVA"
    assert dataset_name(PocketSource(type="pocket")) == "pocket"
