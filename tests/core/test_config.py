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
