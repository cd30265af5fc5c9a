"""Who becomes the champion."""

import pytest

from lewis_core.config.reevaluation import ChampionConfig
from lewis_core.errors import ConfigError
from lewis_core.evaluation.champion import deciding_number, deciding_test, is_better
from lewis_core.evaluation.records import Comparison, PairedTest


def outcome(difference: float, p_value: float, answering: str = "listener", metric: str = "accuracy") -> PairedTest:
    return PairedTest(
        evaluation="game",
        answering=answering,
        metric=metric,
        baseline=0.5,
        other=0.5 + difference,
        difference=difference,
        low=difference - 0.1,
        high=difference + 0.1,
        p_value=p_value,
        n=100,
        concepts=20,
    )


@pytest.mark.parametrize(
    ("difference", "p_value", "min_difference", "expected"),
    [
        pytest.param(0.1, 0.01, 0.0, True, id="at-the-limit-counts"),
        pytest.param(0.1, 0.011, 0.0, False, id="not-significant"),
        pytest.param(-0.1, 0.001, 0.0, False, id="significantly-worse"),
        pytest.param(0.0, 0.001, 0.0, False, id="equal-is-not-better"),
        pytest.param(0.04, 0.001, 0.05, False, id="too-little-gained"),
        pytest.param(0.05, 0.001, 0.05, True, id="just-enough-gained"),
    ],
)
def test_better_means_more_than_chance_and_enough(
    difference: float, p_value: float, min_difference: float, expected: bool
) -> None:
    config = ChampionConfig(max_p_value=0.01, min_difference=min_difference)
    assert is_better(outcome(difference, p_value), config) is expected


def test_what_was_not_measured_beats_nobody() -> None:
    assert not is_better(None, ChampionConfig(max_p_value=1.0))


@pytest.mark.parametrize(
    ("settings", "has_independent", "expected"),
    [
        ({}, True, ("game", "independent", "accuracy")),
        ({}, False, ("game", "listener", "accuracy")),
        ({"answering": "listener"}, True, ("game", "listener", "accuracy")),
        ({"evaluation": "recognition"}, True, ("recognition", "listener", "weighted_accuracy")),
        ({"evaluation": "recognition", "metric": "f1"}, False, ("recognition", "listener", "f1")),
    ],
)
def test_one_number_decides(settings: dict[str, str], has_independent: bool, expected: tuple[str, str, str]) -> None:
    assert deciding_number(ChampionConfig.model_validate(settings), has_independent) == expected


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"metric": "f1"}, "game has no tested number 'f1'; expected accuracy"),
        ({"answering": "independent"}, "evaluation.independent names no model"),
    ],
)
def test_a_number_that_nobody_measures_is_refused(settings: dict[str, str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        deciding_number(ChampionConfig.model_validate(settings), has_independent=False)


def test_the_deciding_test_is_found_among_all() -> None:
    wanted = outcome(0.2, 0.5, answering="independent")
    comparison = Comparison(baseline="a", speaker="b", tests=(outcome(0.1, 0.5), wanted))
    assert deciding_test(comparison, ("game", "independent", "accuracy")) == wanted
    assert deciding_test(comparison, ("vqa", "listener", "accuracy")) is None
