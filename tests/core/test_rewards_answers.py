"""Answers of a listener in training: reading them, pricing them, and the form that the prompt asks for."""

import pytest

from lewis_core.config.listener_training import AnswerFormatConfig, ConsistencyRewardConfig, ListenerRewardsConfig
from lewis_core.errors import ConfigError
from lewis_core.prompts import prompt_set
from lewis_core.prompts.pairs import pair_prompt
from lewis_core.rewards.answers import (
    answer_format,
    asks_for_thinking,
    build_answer_rewards,
    consistency,
    parse_answer,
    statistics,
)

GOOD = "<thinking>both have blue stripes</thinking>\n<answer>yes</answer>"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(GOOD, "yes", id="as-asked"),
        pytest.param("<answer> No. </answer>", "no", id="tag-alone"),
        pytest.param("Yes", "yes", id="one-word"),
        pytest.param('```json\n{"Reasoning": "stripes", "Answer": "no"}\n```', "no", id="json-of-the-reference"),
        pytest.param("<answer>yes</answer> no: <answer>no</answer>", "no", id="the-last-counts"),
        pytest.param("yes or no", None, id="both"),
        pytest.param("It is the same mug, yes, I think.", None, id="prose"),
        pytest.param('{"Answer": 1}', None, id="json-of-another-kind"),
        pytest.param("", None, id="nothing"),
    ],
)
def test_answers_are_read_only_where_they_are_clear(text: str, expected: str | None) -> None:
    assert parse_answer(text) == expected


def test_prices() -> None:
    weighted, plain = ConsistencyRewardConfig(), ConsistencyRewardConfig(shape="plain")
    cases = [("yes", "yes"), ("no", "no"), ("yes", "no"), ("no", "yes"), (None, "yes"), (None, "no")]
    assert [consistency(*case, weighted) for case in cases] == [1.0, 1.0, -1.0, -0.3, -1.0, -1.0]
    assert [consistency(*case, plain) for case in cases] == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert all(consistency(None, right, weighted) <= consistency("yes", right, weighted) for right in ("yes", "no"))


@pytest.mark.parametrize("wording", ["concise", "instruct"])
def test_the_rewarded_form_is_the_form_that_the_prompts_ask_for(wording: str) -> None:
    pairs = [
        {
            "role": "user",
            "content": [{"type": "image", "text": None}, {"type": "text", "text": pair_prompt(wording, "mug")}],
        }
    ]
    match = [{"role": "user", "content": prompt_set(wording).match("mug", "A blue mug.")}]
    thinks = wording == "instruct"  # the pocket models answer in one word
    assert (asks_for_thinking(pairs), asks_for_thinking(match)) == (thinks, False)
    minimum = AnswerFormatConfig().min_thinking_words
    assert answer_format(GOOD, True, minimum) == 1.0
    assert answer_format("<thinking>blue</thinking><answer>yes</answer>", True, minimum) == 0.0  # hardly thought
    assert answer_format("yes", True, minimum) == 0.0
    assert answer_format("Yes.", False, minimum) == 1.0
    assert answer_format(GOOD, False, minimum) == 0.0


def test_rewards_in_trls_shape() -> None:
    rewards, weights = build_answer_rewards(ListenerRewardsConfig())
    logged: dict[str, float] = {}
    completions = [[{"role": "assistant", "content": text}] for text in (GOOD, "no", "maybe", "yes")]
    prompt = [{"role": "user", "content": "Use <thinking> and <answer>."}]
    columns = {"completions": completions, "prompts": [prompt] * 4, "answer": ["yes", "no", "no", "no"]}
    right, form = rewards
    assert right(**columns, log_metric=logged.__setitem__) == [1.0, 1.0, -1.0, -1.0]
    assert form(**columns) == [1.0, 0.0, 0.0, 0.0]
    assert weights == [1.0, 0.2]
    assert logged == {
        "answers/accuracy": 0.5,
        "answers/unreadable": 0.25,
        "answers/yes": 0.5,
        "answers/accuracy_yes": 1.0,
        "answers/accuracy_no": pytest.approx(1 / 3),
    }
    assert "accuracy_yes" not in statistics(["no"], ["no"])


def test_something_has_to_be_rewarded() -> None:
    nothing = ListenerRewardsConfig(consistency=ConsistencyRewardConfig(weight=0), format=AnswerFormatConfig(weight=0))
    with pytest.raises(ConfigError, match=r"rewards\.consistency\.weight"):
        build_answer_rewards(nothing)
