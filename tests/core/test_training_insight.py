"""What is told about a run: shares and utilisation by hand, the page of samples, the model card."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lewis_core.config.base import ModelRef
from lewis_core.config.listener_training import TrainListenerConfig
from lewis_core.config.training import TrainSpeakerConfig
from lewis_core.errors import ImageError
from lewis_core.training.insight import Utilisation, derive, peak_flops, step_flops
from lewis_core.training.model_card import render_card
from lewis_core.training.samples import MAX_ROWS, render_page


def test_operations_of_a_step_by_hand() -> None:
    tokens = {"rollout": 10.0, "reference": 20.0, "update": 5.0}
    assert step_flops(tokens, 7.0, trains_all=False) == 7 * (2 * 30 + 4 * 5)
    assert step_flops(tokens, 7.0, trains_all=True) == 7 * (2 * 30 + 6 * 5)


def test_shares_latency_and_utilisation_by_hand() -> None:
    logs = {"seconds/rollout": 2.0, "tokens_per_s/rollout": 50.0, "seconds/update": 5.0, "tokens_per_s/update": 20.0,
            "seconds/listener_wait": 0.5}  # fmt: skip
    found = derive(logs, 10.0, [0.1, 0.3], Utilisation(1e6, trains_all=False, peak=1e9))
    assert found["share/listener_wait"] == pytest.approx(0.05)
    assert (found["share/rollout"], found["share/update"], found["share/reference"]) == (0.2, 0.5, 0.0)
    assert found["tokens_per_s/step"] == pytest.approx((100 + 100) / 10)
    assert (found["latency/mean_s"], found["latency/max_s"]) == (pytest.approx(0.2), 0.3)
    assert found["gpu/mfu"] == pytest.approx(1e6 * (2 * 100 + 4 * 100) / (10.0 * 1e9))
    assert "gpu/mfu" not in derive(logs, 10.0, [], Utilisation(1e6, trains_all=False, peak=None))


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("Some GPU", None),
    ],
)
def test_gpus_are_known_by_name(name: str, tera: int | None) -> None:
    assert peak_flops(name) == (None if tera is None else tera * 1e12)


def sample(number: int, **more: Any) -> dict[str, Any]:
    return {
        "completion": f"text {number} <script>alert(1)</script>",
        "listener": 0.5,
        "noticed": "state",
        "hacks": -1.0,
        "photos": [f"train/mug/{number}.jpg"],
        "candidates": ["test/mug/a.jpg", "test/mug/b.jpg"],
        "yes_probability": [0.9, 0.1],
        "target_index": 0,
        **more,
    }


def load(reference: str) -> Image.Image:
    if "b.jpg" in reference:
        raise ImageError(reference, "no such image")
    return Image.new("RGB", (300, 200), "red")


def test_the_page_shows_photos_scores_and_the_target_and_escapes_text() -> None:
    page = render_page(7, [sample(n) for n in range(30)], load, load)
    assert page.count('<div class="text">') == MAX_ROWS
    assert "text 0 &lt;script&gt;" in page
    assert "<script>" not in page
    assert page.count("data:image/jpeg;base64,") == 2 * MAX_ROWS  # the photo and candidate a, which is the target
    assert page.count('class="target"') == MAX_ROWS
    assert "0.900 · target" in page
    assert "<i>test/mug/b.jpg</i>" in page  # what cannot be read is named
    assert "listener 0.5" in page
    assert "noticed: state" in page
    assert "hacks -1" in page


def test_the_page_shows_what_the_listener_did_not_see() -> None:
    page = render_page(1, [sample(0, yes_probability=None, noticed=None)], load, load)
    assert page.count("not judged") == 2
    assert "1 of 1 completions" in page


def test_the_model_card_has_base_data_settings_results_and_limits(tmp_path: Path) -> None:
    model = ModelRef(path="Qwen/Qwen2-VL-7B-Instruct")
    config = TrainSpeakerConfig(model=model, listener=model, learning_rate=3e-5)
    metrics: list[dict[str, float]] = [
        {"step": 1, "reward": 0.25, "listener/accuracy": 0.2},
        {"step": 2, "reward": 0.5},
    ]
    card = render_card(config, metrics, {"data digest": "abc|def"})
    front = card.split("---")[1]
    assert 'base_model: "Qwen/Qwen2-VL-7B-Instruct"' in front
    assert "library_name" in front
    assert "| reward | 0.25 | 0.5 | weighted sum of all rewards |" in card
    assert "| listener accuracy | 0.2 | 0.2 |" in card
    assert "| data digest | abc\\|def |" in card
    assert "| learning_rate | `3e-05` |" in card
    assert "| lora.r | `64` |" in card
    assert "watchdogs" not in card
    assert "private code" in card.partition("## Limits")[2]
    assert card == render_card(config, metrics, {"data digest": "abc|def"})


def test_the_card_says_what_was_trained() -> None:
    model = {"path": "some/base"}
    listener = render_card(TrainListenerConfig.model_validate({"model": model}), [], {})
    assert "rewarded for the right answer" in listener and "private code" not in listener
    whole = render_card(
        TrainSpeakerConfig.model_validate({"model": model, "listener": model, "full_finetuning": True}), [], {}
    )
    assert "# Trained from some/base" in whole and 'library_name: "transformers"' in whole
    assert "peft" not in whole and "adapter" not in whole.partition("## How to use it")[2]
