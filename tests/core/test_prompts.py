"""Prompts say what they should, and nothing that gives the answer away."""

import pytest

from lewis_core.errors import ConfigError
from lewis_core.prompts import PROMPT_SETS, PromptSet, prompt_set

DESCRIPTION = "A photo of a mug. The mug has {braces} and 100 %s."


@pytest.fixture(params=sorted(PROMPT_SETS))
def prompts(request: pytest.FixtureRequest) -> PromptSet:
    return prompt_set(request.param)


def test_concise_prompts_are_those_the_pocket_models_know() -> None:
    concise = prompt_set("concise")
    assert concise.speaker("mug") == (
        "Describe the mug in the image so that it can be told apart from other mugs. "
        "Use <thinking>, <coarse> and <detailed>."
    )
    assert concise.match("mug", "D.") == "Does this description match the image? D. Answer yes or no."
    assert concise.recognition("mug", "D.") == "My mug: D. Is my mug in the image? Answer yes or no."
    assert concise.recognition("mug", None) == "Is my mug in the image? Answer yes or no."
    assert concise.identification("mug", ["D.", "E."]) == (
        "Which description matches the mug in the image? A: D. B: E. Answer with the letter."
    )
    assert concise.vqa("mug", "D.", "Q?", ["x", "y"]) == "My mug: D. Q? A: x B: y Answer with the letter."
    assert concise.vqa("mug", None, "Q?", ["x", "y"]) == "Q? A: x B: y Answer with the letter."
    assert concise.judge_state("T.") == "Does this text mention the state of the object? T. Answer yes or no."
    assert concise.judge_location("T.") == "Does this text mention the location of the object? T. Answer yes or no."


def test_filled_in_text_is_quoted_as_it_is(prompts: PromptSet) -> None:
    assert DESCRIPTION in prompts.match("mug", DESCRIPTION)
    assert DESCRIPTION in prompts.recognition("mug", DESCRIPTION)
    assert DESCRIPTION in prompts.identification("mug", ["B.", DESCRIPTION])
    assert DESCRIPTION in prompts.vqa("mug", DESCRIPTION, "Q?", ["x", "y"])
    assert DESCRIPTION in prompts.judge_state(DESCRIPTION)
    assert DESCRIPTION in prompts.judge_location(DESCRIPTION)


def test_speaker_is_told_the_category_and_the_form(prompts: PromptSet) -> None:
    text = prompts.speaker("garden gnome")
    assert all(part in text for part in ("garden gnome", "<thinking>", "<coarse>", "<detailed>"))


def test_options_are_lettered_in_the_order_given(prompts: PromptSet) -> None:
    text = prompts.identification("mug", ["first.", "second.", "third."])
    positions = [text.index(option) for option in ("A: first.", "B: second.", "C: third.")]
    assert positions == sorted(positions)


@pytest.mark.parametrize("options", [pytest.param([], id="none"), pytest.param(["x"] * 27, id="too-many")])
def test_options_without_letters_are_refused(prompts: PromptSet, options: list[str]) -> None:
    with pytest.raises(ValueError, match=f"1 to 26 options, found {len(options)}"):
        prompts.identification("mug", options)


def test_missing_description_leaves_no_trace(prompts: PromptSet) -> None:
    for text in (prompts.recognition("mug", None), prompts.vqa("mug", None, "Q?", ["x", "y"])):
        assert "None" not in text
        assert "{" not in text


def test_instruct_prompts_ask_for_identity_only() -> None:
    text = prompt_set("instruct").speaker("dog")
    for wanted in ('"A photo of a"', "exactly one fluent sentence", '"The"', "3 or 4", "background", "state"):
        assert wanted in text


def test_unknown_prompt_set_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown prompt set 'poetic'; expected one of \\['concise', 'instruct'\\]"):
        prompt_set("poetic")
