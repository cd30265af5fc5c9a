"""Who is the best checkpoint? One number decides, named before anyone looks, by the paired test; pure."""

from lewis_core.config.reevaluation import ChampionConfig
from lewis_core.errors import ConfigError
from lewis_core.evaluation.compare import HEADLINES
from lewis_core.evaluation.records import Comparison, PairedTest

LISTENER, INDEPENDENT = "listener", "independent"


def deciding_number(config: ChampionConfig, has_independent: bool) -> tuple[str, str, str]:
    """Which number decides: evaluation, who answers, metric.

    Args:
        config: The settings.
        has_independent: Whether an independent listener plays the game.

    Raises:
        ConfigError: If no comparison tests that number, or nobody answers as named.
    """
    tested = HEADLINES[config.evaluation]
    metric = config.metric or next(iter(tested))
    if metric not in tested:
        raise ConfigError(
            f"reevaluation.champion.metric: {config.evaluation} has no tested number {metric!r}; "
            f"expected {' or '.join(tested)}"
        )
    if config.evaluation != "game":
        return config.evaluation, LISTENER, metric
    answering = config.answering or (INDEPENDENT if has_independent else LISTENER)
    if answering == INDEPENDENT and not has_independent:
        raise ConfigError("reevaluation.champion.answering is independent, but evaluation.independent names no model")
    return config.evaluation, answering, metric


def deciding_test(comparison: Comparison, number: tuple[str, str, str]) -> PairedTest | None:
    """The test of the number that decides; ``None`` if it could not be measured for both."""
    for test in comparison.tests:
        if (test.evaluation, test.answering, test.metric) == number:
            return test
    return None


def is_better(test: PairedTest | None, config: ChampionConfig) -> bool:
    """Whether a checkpoint beats what it was compared with, by more than chance and by enough.

    >>> from lewis_core.evaluation.records import PairedTest
    >>> test = PairedTest(evaluation="game", answering="listener", metric="accuracy", baseline=0.5, other=0.6,
    ...                   difference=0.1, low=0.02, high=0.2, p_value=0.02, n=100, concepts=20)
    >>> is_better(test, ChampionConfig(max_p_value=0.05)), is_better(test, ChampionConfig(max_p_value=0.01))
    (True, False)
    """
    if test is None:
        return False
    return test.difference > 0 and test.difference >= config.min_difference and test.p_value <= config.max_p_value
