"""Rewards as TRL calls them: grouping, masking, outages, statistics."""

from collections.abc import Sequence

import pytest

from lewis_core.config.training import (
    FormatRewardConfig,
    LengthRewardConfig,
    ListenerRewardConfig,
    RepetitionRewardConfig,
    RewardsConfig,
)
from lewis_core.errors import ConfigError, ListenerBusyError, ListenerError, ListenerUnavailableError, TrainingError
from lewis_core.listener.schemas import GameScores, ScoreGame
from lewis_core.rewards.trl import ListenerReward, build_rewards
from lewis_core.testing import FakeModel


def completion(detailed: str) -> str:
    return f"<thinking>I see a mug.</thinking> <coarse>A photo of a mug</coarse> <detailed>{detailed}</detailed>"


RED, BLUE = completion("The mug is red."), completion("The mug is blue.")
GAMES = {"candidates": [["a", "b"], ["a", "b"]], "target_index": [0, 0], "category_word": ["mug", "mug"]}


def says_yes(image: str, text: str) -> float:
    """Image a is red, everything else is blue."""
    return 0.9 if ("red" in text) == (image == "a") else 0.2


class CountingModel(FakeModel):
    """Keeps the games of every request; refuses games about images named ``bad``."""

    def __init__(self, error: type[Exception] = ListenerError) -> None:
        super().__init__(says_yes)
        self.requests: list[list[ScoreGame]] = []
        self._error = error

    def score(self, games: Sequence[ScoreGame]) -> list[GameScores]:
        """Answer, or refuse."""
        self.requests.append(list(games))
        if any("bad" in game.candidates for game in games):
            raise self._error("no such image")
        return super().score(games)


def reward(model: FakeModel, max_masked_frac: float = 0.5, malformed: float = 0.0) -> ListenerReward:
    return ListenerReward(model, ListenerRewardConfig(shape="margin", malformed=malformed), max_masked_frac)


def test_reward_is_the_configured_shape_in_order() -> None:
    # red, target a: found, 0.5 + 0.5·(0.9 - 0.2) = 0.85; blue, target a: missed, 0.5·(0.2 - 0.9) = -0.35
    assert reward(FakeModel(says_yes))([RED, BLUE], **GAMES) == pytest.approx([0.85, -0.35])


def test_the_default_shape_reads_log_odds_and_probabilities() -> None:
    function = ListenerReward(FakeModel(says_yes), ListenerRewardConfig(), 0.0)
    # odds 9 and 1/4: posterior 9 / (9 + 0.25), times P(yes | target) = 0.9
    assert function([RED, BLUE], **GAMES)[0] == pytest.approx(0.9 * 9 / 9.25)


def test_completions_may_be_messages() -> None:
    messages = [[{"role": "assistant", "content": RED}], [{"role": "assistant", "content": BLUE}]]
    assert reward(FakeModel(says_yes))(messages, **GAMES) == pytest.approx([0.85, -0.35])


def test_one_request_one_game_per_candidates_each_text_once() -> None:
    model = CountingModel()
    reward(model)(
        [RED, RED, BLUE, RED],
        candidates=[["a", "b"], ["a", "b"], ["a", "b"], ["c", "d"]],
        target_index=[0, 1, 0, 0],
        category_word=["mug"] * 4,
    )
    (games,) = model.requests
    assert [(game.candidates, len(game.descriptions)) for game in games] == [(("a", "b"), 2), (("c", "d"), 1)]
    assert games[0].descriptions[0] == "A photo of a mug. The mug is red."
    assert games[0].category == "mug"


def test_malformed_text_has_its_price_and_is_not_sent() -> None:
    model = CountingModel()
    assert reward(model, malformed=-0.2)(["The mug is red.", RED], **GAMES) == pytest.approx([-0.2, 0.85])
    assert [text for games in model.requests for game in games for text in game.descriptions] == [
        "A photo of a mug. The mug is red."
    ]


def test_games_never_have_more_descriptions_than_the_listener_takes() -> None:
    model = CountingModel()
    texts = [RED.replace("The mug is red.", f"The mug is red {'x' * (number + 1)}.") for number in range(300)]
    games = {"candidates": [["a", "b"]] * 300, "target_index": [0] * 300, "category_word": ["mug"] * 300}
    assert reward(model)(texts, **games) == [pytest.approx(0.85)] * 300
    assert [len(game.descriptions) for games in model.requests for game in games] == [256, 44]


def test_nothing_is_sent_when_everything_is_malformed() -> None:
    model = CountingModel()
    assert reward(model)(["no", "nothing"], **GAMES) == [0.0, 0.0]
    assert model.requests == []


def test_an_item_that_the_listener_refuses_is_masked_and_the_others_are_judged() -> None:
    games = {"candidates": [["a", "b"], ["bad", "b"]], "target_index": [0, 0], "category_word": ["mug", "mug"]}
    function = reward(CountingModel())
    assert function([RED, RED], **games) == [pytest.approx(0.85), None]
    assert function.masked == {1}


def test_too_many_masked_items_stop_training() -> None:
    games = {"candidates": [["a", "b"], ["bad", "b"]], "target_index": [0, 0], "category_word": ["mug", "mug"]}
    with pytest.raises(TrainingError, match="could not judge 1 of 2"):
        reward(CountingModel(), max_masked_frac=0.4)([RED, RED], **games)


@pytest.mark.parametrize("error", [ListenerUnavailableError, ListenerBusyError])
def test_an_outage_raises_and_is_not_asked_again(error: type[Exception]) -> None:
    games = {"candidates": [["bad", "b"]], "target_index": [0], "category_word": ["mug"]}
    model = CountingModel(error)
    with pytest.raises(error):
        reward(model)([RED], **games)
    assert len(model.requests) == 1


def test_numbers_that_are_not_finite_mask_the_item() -> None:
    class Broken(FakeModel):
        def score(self, games: Sequence[ScoreGame]) -> list[GameScores]:
            nan = ((float("nan"), 0.0),)
            return [GameScores(yes_log_odds=nan, yes_probability=nan, captured_mass=nan) for _ in games]

    games = {"candidates": [["a", "b"]], "target_index": [0], "category_word": ["mug"]}
    assert reward(Broken(), max_masked_frac=1.0)([RED], **games) == [None]


def test_asking_before_is_remembered_for_the_same_list_only() -> None:
    model = CountingModel()
    function, texts = reward(model), [RED, BLUE]
    function.ask(texts, GAMES["candidates"], GAMES["category_word"])
    assert function(texts, **GAMES) == pytest.approx([0.85, -0.35])
    assert len(model.requests) == 1
    function(texts, **GAMES)
    assert len(model.requests) == 2


def test_what_was_sent_ahead_is_not_asked_again() -> None:
    model, columns = CountingModel(), {"candidates": [["a", "b"]] * 3, "category_word": ["mug"] * 3}
    function, texts = reward(model), [RED, BLUE, "broken"]
    function.begin([2, 0], ["broken", RED], columns["candidates"][:2], columns["category_word"][:2])
    judgements = function.ask(texts, **columns)
    assert [[text for game in games for text in game.descriptions] for games in model.requests] == [
        ["A photo of a mug. The mug is red."],
        ["A photo of a mug. The mug is blue."],
    ]
    assert judgements == reward(CountingModel()).ask(texts, **columns)
    assert function.ask(texts, **columns) == judgements  # nothing is kept from what was sent ahead
    assert len(model.requests) == 3


def test_what_was_sent_ahead_counts_only_for_the_same_text() -> None:
    model, columns = CountingModel(), {"candidates": [["a", "b"]], "category_word": ["mug"]}
    function = reward(model)
    function.begin([0], [RED], **columns)
    assert function.ask([BLUE], **columns) == reward(CountingModel()).ask([BLUE], **columns)
    function.begin([0], [RED], **columns)
    function.forget()
    function.ask([RED], **columns)
    assert model.requests[-1][0].descriptions == ("A photo of a mug. The mug is red.",)


def test_without_requests_ahead_all_are_judged_at_the_end() -> None:
    model, columns = CountingModel(), {"candidates": [["a", "b"]], "category_word": ["mug"]}
    function = ListenerReward(model, ListenerRewardConfig(), requests=0)
    function.begin([0], [RED], **columns)
    function.forget()
    assert model.requests == []
    assert function.ask([RED], **columns) == reward(CountingModel()).ask([RED], **columns)


def test_nothing_is_sent_ahead_to_a_listener_in_this_process() -> None:
    class ModelHere(CountingModel):
        """One that computes in this process."""

        computes_here = True

    model, columns = ModelHere(), {"candidates": [["a", "b"]], "category_word": ["mug"]}
    function = reward(model)
    assert (function.waits, reward(CountingModel()).waits) == (False, True)
    function.begin([0], [RED], **columns)
    assert model.requests == []
    assert function.ask([RED], **columns) == reward(CountingModel()).ask([RED], **columns)


def test_items_refused_ahead_are_masked() -> None:
    function = reward(CountingModel())
    function.begin([1], [RED], [["bad", "b"]], ["mug"])
    assert function.ask([RED, RED], [["a", "b"], ["bad", "b"]], ["mug"] * 2)[1] is None
    assert function.masked == {1}


@pytest.mark.parametrize("error", [ListenerUnavailableError, ListenerBusyError])
def test_an_outage_ahead_is_raised_when_the_rewards_are_wanted(error: type[Exception]) -> None:
    function = reward(CountingModel(error))
    function.begin([0], [RED], [["bad", "b"]], ["mug"])
    with pytest.raises(error):
        function.ask([RED], [["bad", "b"]], ["mug"])
    assert function.ask([RED], [["a", "b"]], ["mug"]) != [None]  # and is over with it


def test_statistics_of_a_step() -> None:
    logged: dict[str, float] = {}
    extra: dict[str, list] = {}
    reward(FakeModel(says_yes))(
        [RED, BLUE, "broken", RED],
        candidates=[["a", "b"]] * 4,
        target_index=[0, 0, 0, 1],
        category_word=["mug"] * 4,
        log_metric=logged.__setitem__,
        log_extra=extra.__setitem__,
    )
    assert logged["listener/accuracy"] == 1 / 4  # red → a; the broken one counts as not found
    assert logged["listener/masked_frac"] == 0.0
    assert logged["listener/target_yes"] == pytest.approx((0.9 + 0.2 + 0.2) / 3)
    # odds of (a, b): red 9 and 1/4, blue 1/4 and 9
    assert logged["listener/posterior"] == pytest.approx((9 / 9.25 + 0.25 / 9.25 + 0.25 / 9.25) / 3)
    assert logged["listener/captured_mass"] == 1.0
    assert extra["yes_probability"] == [[0.9, 0.2], [0.2, 0.9], None, [0.9, 0.2]]
    assert extra["target_index"] == [0, 0, 0, 1]


def test_all_rewards_leave_a_masked_item_out() -> None:
    games = {"candidates": [["a", "b"], ["bad", "b"]], "target_index": [0, 0], "category_word": ["mug", "mug"]}
    functions, weights = build_rewards(RewardsConfig(max_masked_frac=1.0), CountingModel())
    assert [function.__name__ for function in functions] == ["listener", "format", "length", "repetition", "hacks"]
    assert weights == [1.0, 0.2, 0.2, 0.3, 1.0]
    columns = [function(completions=[RED, RED], **games) for function in functions]
    assert [column[1] for column in columns] == [None] * 5
    # "I see a mug." has 4 words; "The mug is red." has 4, 4 fewer than 8: 1 - 4/10
    assert [column[0] for column in columns[1:]] == [1.0, pytest.approx(0.6), 0.0, 0.0]


def test_malformed_text_gets_the_least_of_every_reward() -> None:
    functions, _ = build_rewards(RewardsConfig(), FakeModel(says_yes))
    rewards = [function(completions=["The mug is red."] * 2, **GAMES)[0] for function in functions]
    assert rewards == [0.0, 0.0, 0.0, -1.0, 0.0]


def test_weight_zero_switches_a_reward_off_and_nothing_left_is_an_error() -> None:
    off = RewardsConfig(
        listener=ListenerRewardConfig(weight=0),
        format=FormatRewardConfig(weight=0),
        length=LengthRewardConfig(weight=0.5, shape="reference"),
        repetition=RepetitionRewardConfig(weight=0),
    )
    functions, weights = build_rewards(off, None)
    assert ([function.__name__ for function in functions], weights) == (["length", "hacks"], [0.5, 1.0])
    assert functions[0](completions=["broken"]) == [-0.3]
    with pytest.raises(ConfigError, match="all rewards have weight 0"):
        build_rewards(off.model_copy(update={"length": LengthRewardConfig(weight=0)}), None)


def test_the_listeners_reward_needs_a_listener() -> None:
    with pytest.raises(ConfigError, match="no listener was given"):
        build_rewards(RewardsConfig(), None)
