"""Groups of completions stay whole, and impossible settings of GRPO are refused when they are read."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from flows.settings import validate
from lewis_core.config.grpo import GrpoConfig, split_problem
from lewis_core.config.listener_training import ConsistencyRewardConfig
from lewis_core.config.training import TrainSpeakerConfig
from lewis_core.errors import ConfigError, TrainingError
from lewis_core.training.groups import check_groups, level_groups, photos_of

MODEL = {"path": "pocket:base"}


def test_a_row_shows_one_photo_or_several() -> None:
    assert photos_of({"query": "a.jpg"}) == ("a.jpg",)
    assert photos_of({"photos": ["a.jpg", "b.jpg"]}) == ("a.jpg", "b.jpg")


def test_cut_groups_are_noticed() -> None:
    one, two = {"query": "a.jpg"}, {"query": "b.jpg"}
    check_groups([one, one, two, two], 2)
    check_groups([one, one, one, one], 2)  # the same prompt twice
    with pytest.raises(TrainingError, match="rows 0 to 1 of this process belong to different prompts"):
        check_groups([one, two, one, two], 2)
    with pytest.raises(TrainingError, match="3 completions to write, which is no multiple of num_generations = 2"):
        check_groups([one, one, two], 2)


def test_groups_of_equal_rewards_are_level() -> None:
    nan = float("nan")
    same, silent = [[1.0, 0.2]] * 2, [[nan, 0.2]] * 2
    other, half_silent = [[1.0, 0.2], [0.2, 1.0]], [[nan, 0.2], [1.0, 0.2]]
    rewards = torch.tensor([*same, *other, *silent, *half_silent])
    assert level_groups(rewards, 2).tolist() == [True, True, False, False, True, True, False, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"num_generations": 1}, "takes at least 2 of them (8 is usual)", id="one-completion"),
        pytest.param({"num_processes": 3}, "8, which 3 processes cannot share equally", id="processes"),
        pytest.param({"micro_batch_prompts": 3}, "take one of [1, 2, 4, 8]", id="micro-batch"),
        pytest.param(
            {"num_processes": 4, "distributed": {"num_machines": 3}}, "num_processes (4) must be a multiple", id="nodes"
        ),
        pytest.param(
            {"distributed": {"strategy": "zero3"}, "rollouts": "shared_prefix"},
            "set rollouts to 'auto' (TRL's sampler, slow)",
            id="zero3-with-our-sampler",
        ),
        pytest.param(
            {"model": {**MODEL, "adapter": "a"}, "full_finetuning": True}, "merge model.adapter into it", id="full"
        ),
        pytest.param(
            {"model": {**MODEL, "adapter": "a"}, "distributed": {"strategy": "zero3"}},
            "cannot be continued under ZeRO-3",
            id="zero3-adapter",
        ),
        pytest.param({"loss_type": "cispo"}, "set epsilon_high, e.g. to 5.0", id="cispo"),
        pytest.param({"learning_rate": float("inf")}, "should be a finite number", id="infinite"),
        pytest.param({"adam_betas": (0.9, 1.0)}, "should be less than 1", id="betas"),
        pytest.param({"seed": -1}, "should be greater than or equal to 0", id="seed"),
        pytest.param({"learning_rate": 1e6}, "should be less than or equal to 1", id="learning-rate"),
        pytest.param({"weight_decay": 10}, "should be less than or equal to 1", id="decay"),
        pytest.param({"temperature": 100}, "should be less than or equal to 10", id="temperature"),
        pytest.param({"lora": {"r": 10_000}}, "should be less than or equal to 8192", id="rank"),
        pytest.param({"watchdogs": {"stop_after": 4}}, "lower warn_after too", id="watchdogs"),
        pytest.param({"model": {**MODEL, "max_pixels": 784}}, "(3136) must not exceed max_pixels (784)", id="pixels"),
        pytest.param({"lora": {"target_modules": []}}, "should have at least 1 item", id="no-layers"),
    ],
)
def test_impossible_settings_are_refused_with_what_to_do(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        GrpoConfig.model_validate({"model": MODEL, **changes})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"num_processes": 2, "distributed": {"timeout_s": 800}},
            "timeout_s (800) must be longer than patience.outage_s and patience.busy_s (900)",
            id="timeout",
        ),
        pytest.param({"rewards": {"length": {"min_words": 50}}}, "(50) must not exceed max_words (45)", id="length"),
        pytest.param({"rewards": {"listener": {"malformed": 1}}}, "less than or equal to 0", id="malformed"),
    ],
)
def test_impossible_settings_of_a_speaker_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        TrainSpeakerConfig.model_validate({"model": MODEL, "listener": MODEL, **changes})
    assert message in str(error.value)


def test_a_right_answer_is_worth_most() -> None:
    with pytest.raises(ValidationError, match=r"right \(0\) must be worth more than"):
        ConsistencyRewardConfig(right=0, unreadable=0)


def test_a_person_reads_one_line_about_impossible_settings() -> None:
    values = {
        "source": {"type": "pocket"},
        "evaluation": {"answering": MODEL},
        "training": {"model": MODEL, "listener": MODEL, "prompts_per_step": 6, "num_processes": 4},
    }
    with pytest.raises(ConfigError) as error:
        validate(values)
    assert str(error.value) == (
        "training: prompts_per_step is 6, which 4 processes cannot share equally; make it a multiple of 4, e.g. 8"
    )


def test_splits() -> None:
    assert split_problem(8, None, 4) is None
    assert split_problem(8, 2, 2) is None
    assert "e.g. 3" in str(split_problem(1, None, 3))


def test_epochs_become_steps() -> None:
    config = GrpoConfig.model_validate({"model": MODEL, "epochs": 4, "prompts_per_step": 8})
    assert config.steps(500) == 250
    assert config.model_copy(update={"epochs": 0.29}).steps(800) == 29  # 28.999999999999996 in binary
    assert GrpoConfig.model_validate({"model": MODEL}).steps(500) == 60
