"""Formulas of the listener, with the reference's own examples."""

import math

import pytest

from lewis_core.listener.scoring import (
    captured_mass,
    predicted_index,
    reference_reward_score,
    yes_log_odds,
    yes_probability,
)


@pytest.mark.parametrize(
    ("probabilities", "index", "score"),
    [
        pytest.param((0.99, 0.98, 0.97), 0, 0.99 / 2.94, id="all-fit"),  # 0.337
        pytest.param((0.9, 0.1, 0.05), 0, 0.9 / 1.05, id="one-fits"),  # 0.857
        pytest.param((0.31, 0.01, 0.01), 0, 0.31 / 0.33, id="just-over-the-gate"),  # 0.939
        pytest.param((0.29, 0.01, 0.01), 0, 0.5 * 0.29 / 0.31, id="under-the-gate"),  # 0.468
        pytest.param((0.0, 0.0, 0.0), 0, 0.0, id="nothing-fits"),
        pytest.param((0.1, 0.5, 0.5), 1, 0.5 / 1.1, id="first-of-equals"),
    ],
)
def test_reference_formulas(probabilities, index, score):
    assert predicted_index(probabilities) == index
    assert reference_reward_score(probabilities) == pytest.approx(score)


def test_no_candidates_are_an_error():
    with pytest.raises(ValueError, match="at least one candidate"):
        predicted_index(())


def test_yes_against_no():
    # P(yes) = 0.6, P(no) = 0.2: odds 3, share 0.6 / 0.8 = 0.75, mass 0.8
    yes, no = math.log(0.6), math.log(0.2)
    assert yes_log_odds(yes, no) == pytest.approx(math.log(3))
    assert yes_probability(yes_log_odds(yes, no)) == pytest.approx(0.75)
    assert captured_mass((yes, no)) == pytest.approx(0.8)


def test_extreme_odds_neither_overflow_nor_lose_their_order():
    assert yes_probability(-800.0) == 0.0
    assert yes_probability(800.0) == 1.0
    assert 0 < yes_probability(-700.0) < yes_probability(-699.0)
    assert captured_mass((0.0, -50.0)) == 1.0
