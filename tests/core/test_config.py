"""Settings that refuse what would only be noticed hours later."""

import pytest
from pydantic import ValidationError

from lewis_core.config.base import ModelRef
from lewis_core.config.evaluation import EvaluationConfig, SpeakerRef

MODEL = ModelRef(path="pocket:base")


@pytest.mark.parametrize("names", [["base"], ["seed-1", "trained"], ["seed-1", "seed-1"], ["report"]])
def test_speakers_need_names_of_their_own(names: list[str]) -> None:
    speakers = tuple(SpeakerRef(name=name, model=MODEL) for name in names)
    with pytest.raises(ValidationError, match="names of their own"):
        EvaluationConfig(answering=MODEL, speakers=speakers)


@pytest.mark.parametrize("name", ["", "a/b", "wall_s", "<b>", "x" * 41])
def test_speaker_names_are_plain(name: str) -> None:
    with pytest.raises(ValidationError, match="name"):
        SpeakerRef(name=name, model=MODEL)


def test_different_speakers_are_fine() -> None:
    speakers = (SpeakerRef(name="seed-1", model=MODEL), SpeakerRef(name="Qwen2.5 VL", model=MODEL))
    assert EvaluationConfig(answering=MODEL, speakers=speakers).speakers == speakers


def test_one_line_turns_control_arms_on_everywhere_and_an_evaluation_may_say_otherwise() -> None:
    settings = {"answering": MODEL, "controls": ["no-image", "blind"], "vqa": {"controls": False, "num_options": 3}}
    config = EvaluationConfig.model_validate(settings)
    assert config.identification.controls == config.recognition.controls == ("no-image", "blind")
    assert config.vqa is not None
    assert (config.vqa.controls, config.vqa.num_options) == (False, 3)
    assert EvaluationConfig.model_validate(config.model_dump()) == config
    assert EvaluationConfig(answering=MODEL, vqa=None, controls=("blind",)).vqa is None
    assert EvaluationConfig(answering=MODEL).recognition.controls is True
    with pytest.raises(ValidationError, match="always-B"):
        EvaluationConfig.model_validate({"answering": MODEL, "controls": ["always-B"]})
