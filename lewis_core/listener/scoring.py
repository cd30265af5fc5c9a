"""From log-probabilities of answers to scores: pure functions of numbers."""

import math
from collections.abc import Sequence

REFERENCE_GATE = 0.3
"""The reference halves its score when no candidate reaches this P(yes)."""


def yes_log_odds(yes_log_prob: float, no_log_prob: float) -> float:
    """Log-odds of yes against no."""
    return yes_log_prob - no_log_prob


def yes_probability(log_odds: float) -> float:
    """P(yes) / (P(yes) + P(no)), from the log-odds; exact in both tails."""
    if log_odds >= 0:
        return 1 / (1 + math.exp(-log_odds))
    return math.exp(log_odds) / (1 + math.exp(log_odds))


def captured_mass(log_probs: Sequence[float]) -> float:
    """Probability that the model says one of the answers at all, in [0, 1]."""
    return min(1.0, math.fsum(math.exp(value) for value in log_probs))


def predicted_index(yes_probabilities: Sequence[float]) -> int:
    """Candidate with the highest P(yes); the first of equals.

    Raises:
        ValueError: If there is no candidate.
    """
    if not yes_probabilities:
        raise ValueError("expected at least one candidate")
    return max(range(len(yes_probabilities)), key=lambda index: (yes_probabilities[index], -index))


def reference_reward_score(yes_probabilities: Sequence[float]) -> float:
    """The reference service's ``reward_score``: the pick's share of P(yes), halved when no candidate reaches 0.3.

    Args:
        yes_probabilities: P(yes) per candidate, at least one, each in [0, 1].

    Returns:
        A share in [0, 1]; 0 when all are 0.

    Source:
        Lewis_Game, ``train_src/open_r1/listener_service.py``.
    """
    best = yes_probabilities[predicted_index(yes_probabilities)]
    share = best / (math.fsum(yes_probabilities) or 1.0)
    return share if best >= REFERENCE_GATE else 0.5 * share
