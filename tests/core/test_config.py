"""Settings that refuse what would only be noticed hours later."""

import importlib
import math
import pkgutil
import types
import typing
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

import lewis_core.config
from lewis_core.config.base import FrozenConfig, ModelRef
from lewis_core.config.evaluation import EvaluationConfig, SpeakerRef

MODEL = ModelRef(path="pocket:base")
SIGNED = {"ListenerRewardConfig.malformed", "StorageConfig.options"} | {
    f"ConsistencyRewardConfig.{name}" for name in ("right", "false_yes", "false_no", "unreadable")
}
"""Settings that may be negative, beside seeds, from which others are derived: prices, and options of others."""


def forms(annotation: Any) -> Iterator[Any]:
    """Values of a type of settings in which a number can be put: ``0`` for the number itself, ``(0,)`` in a tuple."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in (int, float):
        yield lambda number: number
    elif origin is typing.Annotated:
        yield from forms(inner[0])
    elif origin in (typing.Union, types.UnionType):
        yield from (form for one in inner for form in forms(one))
    elif origin is tuple:
        length = 1 if inner[-1] is Ellipsis else len(inner)
        yield from (lambda number, form=form: [form(number)] * length for form in forms(inner[0]))
    elif origin is dict:
        yield from (lambda number, form=form: {"train-speaker": form(number)} for form in forms(inner[1]))


def is_refused(kind: type[FrozenConfig], name: str, value: Any) -> bool:
    try:
        kind.model_validate({name: value})
    except ValidationError as error:
        return any(problem["loc"][:1] in ((name,), ()) for problem in error.errors())
    return False


def numbers() -> Iterator[tuple[str, type[FrozenConfig], str, Any]]:
    """Every setting that takes a number, of all settings there are."""
    of_package = [module.name for module in pkgutil.iter_modules(lewis_core.config.__path__, "lewis_core.config.")]
    for module in (*of_package, "lewis_core.listener.limits", "lewis_core.pocket.training.config"):
        importlib.import_module(module)
    kinds = [FrozenConfig]
    for kind in kinds:  # which grows
        kinds += [inner for inner in kind.__subclasses__() if inner.__module__.startswith("lewis_core.")]
        for name, field in kind.model_fields.items():
            yield from ((f"{kind.__name__}.{name}", kind, name, form) for form in forms(field.annotation))


def test_every_number_is_finite_and_not_negative_where_that_has_no_meaning() -> None:
    found = list(numbers())
    assert {"GrpoConfig.adam_betas", "RunConfig.stage_timeouts_s", "PocketWorldConfig.image_size"} <= {
        place for place, *_ in found
    }
    for place, kind, name, form in found:
        for number in (math.nan, math.inf, -math.inf):
            assert is_refused(kind, name, form(number)), f"{place} = {number}"
        may_be_negative = place in SIGNED or (name == "seed" and kind.model_fields[name].annotation is int)
        assert is_refused(kind, name, form(-1)) or may_be_negative, f"{place} = -1"


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
