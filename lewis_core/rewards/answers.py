"""What a listener's own answers are worth: the right yes or no, in the form that was asked for."""

import json
import re
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from lewis_core.config.listener_training import ConsistencyRewardConfig, ListenerRewardsConfig
from lewis_core.errors import ConfigError
from lewis_core.rewards.trl import Completion, Reward, completion_text

_TAGGED = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.IGNORECASE | re.DOTALL)
_ASKED = re.compile(
    r"\s*<thinking>(.*?)</thinking>\s*<answer>\s*(yes|no)\s*\.?\s*</answer>\s*", re.IGNORECASE | re.DOTALL
)
_WORD = re.compile(r"\s*(yes|no)\s*[.!]?\s*", re.IGNORECASE)
Answer = str | None


def parse_answer(text: str) -> Answer:
    """Read yes or no: in ``<answer>``, as ``Answer`` of a JSON object, or as the only word; ``None`` if it is unclear.

    >>> parse_answer("<thinking>stripes</thinking><answer>Yes.</answer>"), parse_answer("no"), parse_answer("yes or no")
    ('yes', 'no', None)
    """
    tagged = _TAGGED.findall(text)
    said = tagged[-1] if tagged else _json_answer(text) or text
    found = _WORD.fullmatch(said)
    return found[1].lower() if found else None


def _json_answer(text: str) -> str | None:
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        return None
    try:
        content = json.loads(text[start : end + 1])
    except ValueError:
        return None
    answer = content.get("Answer") if isinstance(content, dict) else None
    return answer if isinstance(answer, str) else None


def consistency(answer: Answer, right: str, config: ConsistencyRewardConfig) -> float:
    """Reward an answer.

    Args:
        answer: ``yes``, ``no``, or ``None`` if there is none.
        right: ``yes`` or ``no``.
        config: The prices.
    """
    if config.shape == "plain":
        return float(answer == right)
    if answer is None:
        return config.unreadable
    if answer == right:
        return config.right
    return config.false_yes if answer == "yes" else config.false_no


def answer_format(text: str, asks_for_thinking: bool, min_thinking_words: int) -> float:
    """1 if a completion has the form that its prompt asks for, else 0.

    Args:
        text: The completion.
        asks_for_thinking: ``<thinking>`` and ``<answer>`` were asked for; otherwise one word, yes or no.
        min_thinking_words: Shorter thinking does not count.
    """
    if not asks_for_thinking:
        return float(_WORD.fullmatch(text) is not None)
    found = _ASKED.fullmatch(text)
    return float(found is not None and len(found[1].split()) >= min_thinking_words)


def asks_for_thinking(prompt: Any) -> bool:
    """Whether a conversation's text asks for ``<thinking>``."""
    content = prompt[-1]["content"]
    texts = [content] if isinstance(content, str) else [part.get("text") or "" for part in content]
    return any("<thinking>" in text for text in texts)


class AnswerReward:
    """The right answer.

    Args:
        config: Its prices.
    """

    __name__ = "consistency"

    def __init__(self, config: ConsistencyRewardConfig) -> None:
        self._config = config

    def __call__(
        self,
        completions: Sequence[Completion],
        answer: Sequence[str],
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **_: Any,
    ) -> list[float | None]:
        """Reward completions, in order."""
        found = [parse_answer(completion_text(completion)) for completion in completions]
        if log_metric is not None:
            for name, value in statistics(found, answer).items():
                log_metric(f"answers/{name}", value)
        if log_extra is not None:
            log_extra("right_answer", list(answer))
        return [consistency(one, right, self._config) for one, right in zip(found, answer, strict=True)]


def statistics(found: Sequence[Answer], right: Sequence[str]) -> dict[str, float]:
    """Shares of right, unreadable and yes answers, and of the right ones where yes and where no is right."""
    pairs = list(zip(found, right, strict=True))
    numbers = {
        "accuracy": fmean(one == wanted for one, wanted in pairs),
        "unreadable": fmean(one is None for one, _ in pairs),
        "yes": fmean(one == "yes" for one, _ in pairs),
    }
    for word in ("yes", "no"):
        of_word = [one == wanted for one, wanted in pairs if wanted == word]
        if of_word:
            numbers[f"accuracy_{word}"] = fmean(of_word)
    return numbers


class FormReward:
    """The asked form.

    Args:
        min_thinking_words: Shorter thinking does not count.
    """

    __name__ = "format"

    def __init__(self, min_thinking_words: int) -> None:
        self._min = min_thinking_words

    def __call__(self, completions: Sequence[Completion], prompts: Sequence[Any], **_: Any) -> list[float | None]:
        """Reward completions, in order."""
        return [
            answer_format(completion_text(completion), asks_for_thinking(prompt), self._min)
            for completion, prompt in zip(completions, prompts, strict=True)
        ]


def build_answer_rewards(config: ListenerRewardsConfig) -> tuple[list[Reward], list[float]]:
    """Build the rewards with a weight above 0, and their weights.

    Raises:
        ConfigError: If nothing is rewarded.
    """
    rewards: list[tuple[Reward, float]] = [
        (AnswerReward(config.consistency), config.consistency.weight),
        (FormReward(config.format.min_thinking_words), config.format.weight),
    ]
    kept = [(reward, weight) for reward, weight in rewards if weight > 0]
    if not kept:
        raise ConfigError("all rewards have weight 0; give at least rewards.consistency.weight a value above 0")
    return [reward for reward, _ in kept], [weight for _, weight in kept]
