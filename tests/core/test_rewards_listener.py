"""What a listener's answers are worth, by hand."""

import math

import pytest

from lewis_core.rewards.listener import (
    binary,
    grounded,
    is_first,
    listener_reward,
    margin,
    posterior,
    soft_always,
    soft_gated,
)


@pytest.mark.parametrize(
    ("values", "target", "expected"),
    [
        pytest.param((0.9, 0.1, 0.05), 0, 1.0, id="found"),
        pytest.param((0.9, 0.1, 0.05), 1, 0.0, id="another-is-first"),
        pytest.param((0.5, 0.5, 0.1), 0, 0.0, id="a-tie-is-a-miss"),
        pytest.param((0.0, 0.0), 0, 0.0, id="all-zero-is-a-miss"),
    ],
)
def test_binary(values: tuple[float, ...], target: int, expected: float) -> None:
    assert binary(values, target) == expected
    assert is_first(values, target) is bool(expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [  # the reference's own examples: best / sum, halved when best < 0.3
        pytest.param((0.99, 0.98, 0.97), 0.99 / 2.94, id="0.337"),
        pytest.param((0.9, 0.1, 0.05), 0.9 / 1.05, id="0.857"),
        pytest.param((0.31, 0.01, 0.01), 0.31 / 0.33, id="0.939"),
        pytest.param((0.29, 0.01, 0.01), 0.5 * 0.29 / 0.31, id="0.468"),
        pytest.param((0.0, 0.0, 0.0), 0.0, id="zero"),
    ],
)
def test_soft_always_equals_the_references_score(values: tuple[float, ...], expected: float) -> None:
    assert soft_always(values, 0) == pytest.approx(expected)
    assert soft_always(values, 2) == pytest.approx(expected)  # whoever the target is


def test_soft_gated_needs_the_target_first() -> None:
    assert soft_gated((0.9, 0.1, 0.05), 0) == pytest.approx(0.9 / 1.05)
    assert soft_gated((0.9, 0.1, 0.05), 1) == 0.0
    assert soft_gated((0.9, 0.9), 0) == 0.0


def test_posterior_is_a_softmax_of_log_odds() -> None:
    # e^2 / (e^2 + e^0 + e^-1) = 7.389 / (7.389 + 1 + 0.368) = 0.8438
    assert posterior((2.0, 0.0, -1.0), 0) == pytest.approx(7.38906 / 8.75694, abs=1e-5)


def test_posterior_of_what_fits_all_or_none_is_chance() -> None:
    assert posterior((9.0, 9.0, 9.0, 9.0), 1) == pytest.approx(0.25)
    assert posterior((-9.0, -9.0), 0) == pytest.approx(0.5)


def test_posterior_survives_large_numbers() -> None:
    assert posterior((5000.0, 0.0), 0) == 1.0
    assert posterior((-5000.0, 0.0), 0) == 0.0


def test_grounded_is_the_posterior_times_the_targets_yes() -> None:
    # odds 3 and 1: posterior 3 / 4, P(yes | target) 3 / 4
    assert grounded((math.log(3), 0.0), (0.75, 0.5), 0) == pytest.approx(9 / 16)


def test_grounded_sees_what_is_wrong_for_all_candidates_alike() -> None:
    true = ((4.0, -4.0), (0.982, 0.018))
    false = ((-4.0, -12.0), (0.018, 6e-6))  # the same with a wrong statement: every log-odds 8 lower
    assert posterior(true[0], 0) == pytest.approx(posterior(false[0], 0))
    assert grounded(*true, 0) == pytest.approx(0.982, abs=1e-3)
    assert grounded(*false, 0) == pytest.approx(0.018, abs=1e-3)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param((0.9, 0.2, 0.1), 0.5 + 0.5 * 0.7, id="found"),
        pytest.param((0.4, 0.6), 0.0 + 0.5 * -0.2, id="missed"),
        pytest.param((0.5, 0.5), 0.0, id="tie"),
        pytest.param((0.0, 1.0), -0.5, id="worst"),
    ],
)
def test_margin(values: tuple[float, ...], expected: float) -> None:
    assert margin(values, 0) == pytest.approx(expected)


def test_shapes_choose_their_function() -> None:
    odds, probabilities = (math.log(3), 0.0), (0.75, 0.5)  # sigmoid(ln 3) = 3/4
    assert listener_reward("posterior", odds, probabilities, 0) == pytest.approx(3 / 4)
    assert listener_reward("grounded", odds, probabilities, 0) == pytest.approx(9 / 16)
    assert listener_reward("margin", odds, probabilities, 0) == pytest.approx(0.5 + 0.5 * 0.25)
    assert listener_reward("binary", odds, probabilities, 0) == 1.0
    assert listener_reward("soft_gated", odds, probabilities, 1) == 0.0
    assert listener_reward("soft_always", odds, probabilities, 1) == pytest.approx(0.75 / 1.25)


@pytest.mark.parametrize(("values", "target"), [((0.5,), 0), ((), 0), ((0.5, 0.5), 2), ((0.5, 0.5), -1)])
def test_a_game_needs_two_candidates_and_a_target(values: tuple[float, ...], target: int) -> None:
    for function in (binary, soft_always, posterior):
        with pytest.raises(ValueError, match="at least 2 candidates"):
            function(values, target)
