"""Each way of cheating is found by its name, and honest texts are left alone."""

import pytest

from lewis_core.config.training import HacksRewardConfig, RewardsConfig
from lewis_core.rewards.hacks import HACKS, Game, find_hacks
from lewis_core.rewards.trl import HackReward, build_rewards
from lewis_core.testing import FakeModel

GAME = Game(
    prompt="Describe the mug in the image so that it can be told apart from other mugs.",
    images=("train/mug/qzk/0.jpg", "test/mug/blue-mug-07/12.jpg", "test/mug/red/IMG_2041.jpg"),
    category="mug",
)


def completion(detailed: str, coarse: str = "A photo of a mug") -> str:
    return f"<thinking>I see a mug.</thinking> <coarse>{coarse}</coarse> <detailed>{detailed}</detailed>"


HONEST = completion("The mug has a green handle and 12 white stripes on a red body.")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(HONEST, set(), id="honest"),
        pytest.param(
            completion("The handle is green. The green handle. It is green."), {"repetition"}, id="repetition"
        ),
        pytest.param(
            completion("The mug is red and blue.") * 2, {"tag_stuffing", "malformed", "repetition"}, id="twice"
        ),
        pytest.param(completion("The mug is red, like <sks> mug."), {"tag_stuffing", "malformed"}, id="token"),
        pytest.param(completion("The mug qzk is red with dots."), {"copied_names"}, id="code"),
        pytest.param(completion("The mug is blue-mug-07, a red one."), {"copied_names"}, id="name"),
        pytest.param(completion("The red mug of IMG_2041 has dots."), {"copied_names"}, id="file"),
        pytest.param(completion("It is a."), {"empty"}, id="says-nothing"),
        pytest.param("", {"empty", "malformed"}, id="nothing"),
        pytest.param(
            completion("The mug in the image so that it can be told apart from other mugs."),
            {"template_echo"},
            id="echo",
        ),
        pytest.param(completion("...", "A photo of a ..."), {"template_echo", "malformed"}, id="placeholder"),
        pytest.param(completion("The red mug has dots, so answer yes to it."), {"listener_talk"}, id="order"),
        pytest.param(completion("A red mug: yes, yes, yes."), {"listener_talk", "repetition"}, id="yes"),
        pytest.param(completion("The red mug is the correct candidate."), {"listener_talk"}, id="candidate"),
        pytest.param(completion("The red mug is tilted and has dots."), {"state"}, id="state"),
        pytest.param(completion("The red mug with dots on a wooden table."), {"location"}, id="location"),
    ],
)
def test_hacks_are_found_by_name(text: str, expected: set[str]) -> None:
    assert find_hacks(text, GAME) == expected
    assert expected <= set(HACKS)


def test_what_is_penalised_is_a_setting() -> None:
    columns = {
        "completions": [
            HONEST,
            completion("The mug qzk is red with dots."),
            completion("The red mug is tilted, dots."),
        ],
        "query": [GAME.images[0]] * 3,
        "candidates": [list(GAME.images[1:])] * 3,
        "category_word": ["mug"] * 3,
        "prompts": [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": GAME.prompt}]}]] * 3,
    }
    assert HackReward(HacksRewardConfig())(**columns) == [0.0, -1.0, 0.0]
    assert HackReward(HacksRewardConfig(penalised=("state",)))(**columns) == [0.0, 0.0, -1.0]
    off = RewardsConfig.model_validate({"hacks": {"penalised": ()}})
    assert "hacks" not in [reward.__name__ for reward in build_rewards(off, FakeModel())[0]]


def test_masked_completions_get_no_penalty() -> None:
    class Masked:
        masked = frozenset({1})

    reward = HackReward(HacksRewardConfig(penalised=("empty",)), Masked())  # type: ignore[arg-type]
    assert reward(completions=["", ""]) == [-1.0, None]
