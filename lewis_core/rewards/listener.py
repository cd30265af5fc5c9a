"""What a listener's answers are worth: pure functions of its numbers for one description.

All of them are computed from the description's row over the candidates. A tie is a miss: a description that fits the
target and a distractor equally well has not told them apart.
"""

import math
from collections.abc import Sequence
from typing import Literal

Shape = Literal["grounded", "posterior", "margin", "binary", "soft_gated", "soft_always"]
_GATE = 0.3


def is_first(values: Sequence[float], target_index: int) -> bool:
    """Tell whether the target's value is strictly above every distractor's.

    Raises:
        ValueError: If there are fewer than two candidates, or the target is not one of them.
    """
    _check(values, target_index)
    return values[target_index] > _best_distractor(values, target_index)


def binary(yes_probability: Sequence[float], target_index: int) -> float:
    """Reward 1 if the listener finds the target, else 0.

    Args:
        yes_probability: P(yes) per candidate, shape ``(K,)``, each in [0, 1].
        target_index: Position of the target.

    Source:
        Mode ``binary`` of the reference, except that there a tie goes to the lower index.
    """
    return float(is_first(yes_probability, target_index))


def soft_always(yes_probability: Sequence[float], target_index: int) -> float:
    """Reward the best candidate's share of all P(yes), whoever it is; halved when no P(yes) reaches 0.3.

    Args:
        yes_probability: P(yes) per candidate, shape ``(K,)``, each in [0, 1].
        target_index: Position of the target; only checked.

    Returns:
        A value in [0, 1]; 0 when all probabilities are 0.

    Source:
        ``reward_score`` of the reference: (.99, .98, .97) → .337; (.29, .01, .01) → .468.
    """
    _check(yes_probability, target_index)
    best, total = max(yes_probability), sum(yes_probability)
    share = best / total if total > 0 else 0.0
    return share if best >= _GATE else 0.5 * share


def soft_gated(yes_probability: Sequence[float], target_index: int) -> float:
    """Reward :func:`soft_always` if the listener finds the target, else 0.

    Args:
        yes_probability: P(yes) per candidate, shape ``(K,)``, each in [0, 1].
        target_index: Position of the target.

    Source:
        Mode ``soft_gated`` (the default) of the reference, except for ties.
    """
    return soft_always(yes_probability, target_index) if is_first(yes_probability, target_index) else 0.0


def posterior(yes_log_odds: Sequence[float], target_index: int) -> float:
    """Reward the target's share in a softmax over candidates of the log-odds of yes.

    Text that fits every candidate, or none, earns 1/K whatever the listener's inclination to say yes.

    Args:
        yes_log_odds: Log-odds of yes against no per candidate, shape ``(K,)``, natural logarithm.
        target_index: Position of the target.

    Returns:
        A value in (0, 1).

    Source:
        Ours: if exactly one candidate is right, this is its probability given the listener's independent answers.
    """
    _check(yes_log_odds, target_index)
    top = max(yes_log_odds)
    weights = [math.exp(value - top) for value in yes_log_odds]
    return weights[target_index] / sum(weights)


def grounded(yes_log_odds: Sequence[float], yes_probability: Sequence[float], target_index: int) -> float:
    """Reward :func:`posterior` times P(yes | target): the description tells the target apart, and is true of it.

    The posterior alone is blind to what lowers all answers alike, such as a wrong statement about every candidate.

    Args:
        yes_log_odds: Log-odds of yes against no per candidate, shape ``(K,)``, natural logarithm.
        yes_probability: P(yes) per candidate, shape ``(K,)``, each in [0, 1].
        target_index: Position of the target.

    Returns:
        A value in [0, 1].

    Source:
        Ours.
    """
    return posterior(yes_log_odds, target_index) * yes_probability[target_index]


def margin(yes_probability: Sequence[float], target_index: int) -> float:
    """Reward one half for finding the target, and half of its lead in P(yes) over the best distractor.

    Args:
        yes_probability: P(yes) per candidate, shape ``(K,)``, each in [0, 1].
        target_index: Position of the target.

    Returns:
        A value in [-0.5, 1].

    Source:
        Ours.
    """
    lead = yes_probability[target_index] - _best_distractor(yes_probability, target_index)
    return 0.5 * binary(yes_probability, target_index) + 0.5 * lead


def listener_reward(
    shape: Shape, yes_log_odds: Sequence[float], yes_probability: Sequence[float], target_index: int
) -> float:
    """Reward one description by the configured shape; see the functions of the same names."""
    if shape == "posterior":
        return posterior(yes_log_odds, target_index)
    if shape == "grounded":
        return grounded(yes_log_odds, yes_probability, target_index)
    functions = {"margin": margin, "binary": binary, "soft_gated": soft_gated, "soft_always": soft_always}
    return functions[shape](yes_probability, target_index)


def _best_distractor(values: Sequence[float], target_index: int) -> float:
    return max(value for index, value in enumerate(values) if index != target_index)


def _check(values: Sequence[float], target_index: int) -> None:
    if len(values) < 2 or not 0 <= target_index < len(values):
        raise ValueError(f"expected at least 2 candidates and a target among them, found {len(values)}, {target_index}")
