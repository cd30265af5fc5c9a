"""Adapters from elsewhere: whole or not, and on which model; nothing is loaded."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lewis_core.artifacts import ArtifactStore
from lewis_core.config.base import ModelRef
from lewis_core.errors import ModelError
from lewis_core.models.adapters import (
    adapter_digest,
    check_adapter,
    find_adapters,
    foreign_base,
    seconds_since_change,
)
from lewis_core.models.files import model_identity

BASE = ModelRef(path="pocket:base")


def write(folder: Path, base: str | None = "pocket:base", value: float = 1.0) -> Path:
    folder.mkdir(parents=True)
    save_file({"lora_A": torch.full((2, 3), value)}, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def test_a_whole_adapter_names_its_base(tmp_path: Path) -> None:
    assert check_adapter(write(tmp_path / "a")) == "pocket:base"
    assert check_adapter(write(tmp_path / "b", base=None)) == ""


@pytest.mark.parametrize("kept", [0, 4, 8, 20, -1])
def test_a_file_that_is_cut_anywhere_is_not_whole(tmp_path: Path, kept: int) -> None:
    folder = write(tmp_path / "a")
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"is not a whole safetensors file|its header promises"):
        check_adapter(folder)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("adapter_config.json", b"{", "is not JSON"),
        ("adapter_config.json", b"[]", "has no peft_type"),
        ("adapter_config.json", b"{}", "has no peft_type"),
        ("adapter_config.json", None, "cannot be read: No such file"),
        ("adapter_model.safetensors", None, "cannot be read: No such file"),
        ("adapter_model.safetensors", b"\x02\0\0\0\0\0\0\0[]", "is not a whole safetensors file"),
        ("adapter_model.safetensors", b"\xff" * 40, "is not a whole safetensors file"),
        ("adapter_model.safetensors", b"\x02\0\0\0\0\0\0\0{}more", "has 14 bytes; its header promises 10"),
    ],
)
def test_what_is_no_adapter_is_said(tmp_path: Path, name: str, content: bytes | None, reason: str) -> None:
    file = write(tmp_path / "a") / name
    file.write_bytes(content) if content is not None else file.unlink()
    with pytest.raises(ModelError, match=reason):
        check_adapter(tmp_path / "a")


def test_folders_are_found_at_any_depth_but_not_hidden_ones(tmp_path: Path) -> None:
    found = [write(tmp_path / "b/c/adapter"), write(tmp_path / "b/checkpoint-2")]
    write(tmp_path / ".building-a/adapter")
    assert find_adapters(tmp_path) == found
    assert find_adapters(found[0]) == [found[0]]


def test_an_adapter_settles_with_its_newest_file(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    assert seconds_since_change(folder) < 60
    for path in (folder, *folder.iterdir()):
        os.utime(path, (0, 0))
    assert seconds_since_change(folder) > 1e6
    (folder / "adapter_config.json").touch()
    assert seconds_since_change(folder) < 60


def test_the_digest_is_that_of_weights_and_settings(tmp_path: Path) -> None:
    first, same, other = write(tmp_path / "a"), write(tmp_path / "b"), write(tmp_path / "c", value=2.0)
    (same / "README.md").write_text("by hand")
    assert adapter_digest(first) == adapter_digest(same) != adapter_digest(other)


@pytest.mark.parametrize(
    ("base", "reason"),
    [
        ("pocket:base", ""),
        ("pocket:listener", "it belongs to pocket:listener, not to pocket:base"),
        ("Qwen/Qwen2-VL-7B-Instruct", "it belongs to Qwen/Qwen2-VL-7B-Instruct, not to pocket:base"),
        (None, "its settings do not say which model it belongs to; expected pocket:base"),
    ],
)
def test_an_adapter_of_another_model_is_told(tmp_path: Path, base: str | None, reason: str) -> None:
    assert foreign_base(write(tmp_path / "a", base), BASE) == reason


def test_a_manifest_knows_better_than_a_name(tmp_path: Path) -> None:
    """The name says which model it was called; the manifest of its training, which weights they were."""
    store = ArtifactStore(tmp_path / "store")
    for name, weights in (("same", model_identity(BASE)["weights"]), ("other", "0" * 64)):
        arguments: dict[str, Any] = {"config": {"model": {"weights": weights}}}
        with store.building("train-speaker", name) as folder:
            write(folder / "adapter", base="a name of long ago")
            store.publish(folder, "train-speaker", name, arguments, "", {}, {})
    place = tmp_path / "store/train-speaker"
    assert foreign_base(place / "same/adapter", BASE) == ""
    assert foreign_base(place / "other/adapter", BASE) == "its base has other weights than pocket:base"
    assert seconds_since_change(place / "same/adapter") == float("inf")
