"""The rewards in the shape that TRL calls: one callable per reward, a list of numbers per step.

TRL calls every reward with all completions of a step and the data set's columns. A completion whose game the listener
could not judge gets ``None`` from *every* reward, so that TRL leaves it out; an outage of the listener raises.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from lewis_core.config.training import (
    FormatRewardConfig,
    HacksRewardConfig,
    LengthRewardConfig,
    ListenerRewardConfig,
    RewardsConfig,
)
from lewis_core.descriptions.parse import parse_or_none
from lewis_core.errors import (
    ConfigError,
    ListenerBusyError,
    ListenerError,
    ListenerUnavailableError,
    TrainingError,
)
from lewis_core.listener.schemas import MAX_DESCRIPTIONS, GameScores, ScoreGame
from lewis_core.models.protocol import AnsweringModel, computes_here
from lewis_core.rewards import text as texts
from lewis_core.rewards.hacks import Game, find_hacks
from lewis_core.rewards.listener import is_first, listener_reward, posterior

logger = logging.getLogger(__name__)
OUTAGES = (ListenerUnavailableError, ListenerBusyError)
"""Errors that say that there is no listener now, as opposed to one item that it cannot judge."""
Reward = Callable[..., list[float | None]]
Completion = str | Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Judgement:
    """The listener's numbers for one description: a row over the candidates."""

    yes_log_odds: tuple[float, ...]
    yes_probability: tuple[float, ...]
    captured_mass: tuple[float, ...]


_Judged = tuple[list[Judgement | None], set[int]]


def completion_text(completion: Completion) -> str:
    """Text of a completion, which TRL hands over as a string or as messages."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


class ListenerReward:
    """Being understood by the listener.

    All completions of a call become as few games as possible (one per set of candidates), each distinct description
    is sent once, and malformed completions are not sent at all. Completions that are finished before the others can be
    sent ahead (:meth:`begin`); the answers are waited for when the rewards are wanted.

    Args:
        model: The listener.
        config: Shape of the reward, price of malformed text.
        max_masked_frac: A larger share of completions that the listener cannot judge stops training.
        requests: Requests that are sent ahead at the same time; none are to a listener on this process's CPU.
    """

    __name__ = "listener"

    def __init__(
        self, model: AnsweringModel, config: ListenerRewardConfig, max_masked_frac: float = 0.1, requests: int = 1
    ) -> None:
        self._model, self._config, self._max_masked_frac = model, config, max_masked_frac
        self._asked: tuple[object, list[Judgement | None]] | None = None
        self.waits = not computes_here(model)
        """Whether to ask is to wait for somebody else, not to compute."""
        is_ahead = requests > 0 and self.waits
        self._pool = ThreadPoolExecutor(requests, thread_name_prefix="listener-reward") if is_ahead else None
        self._begun: list[tuple[list[int], list[str], Future[_Judged]]] = []
        self.masked: frozenset[int] = frozenset()
        """Positions of the last call's completions that the listener could not judge."""
        self._latencies_s: list[float] = []

    def ask(
        self, completions: Sequence[Completion], candidates: Sequence[Sequence[str]], category_word: Sequence[str]
    ) -> list[Judgement | None]:
        """Let the listener judge completions; the answer is kept for the next call with the same list.

        Returns:
            One judgement per completion, ``None`` where the completion is malformed or the listener failed on it.

        Raises:
            ListenerUnavailableError: If nobody answers.
            ListenerBusyError: If no slot became free before the deadline.
        """
        begun, self._begun = self._begun, []
        judgements: list[Judgement | None] = [None] * len(completions)
        masked: set[int] = set()
        left = dict.fromkeys(range(len(completions)))
        try:
            for rows, texts, future in begun:
                if [completion_text(completions[row]) for row in rows] == texts:
                    _place(future.result(), rows, judgements, masked)
                    for row in rows:
                        del left[row]
            rest = list(left)
            texts = [completion_text(completions[row]) for row in rest]
            found = self._judge(texts, [candidates[row] for row in rest], [category_word[row] for row in rest])
            _place(found, rest, judgements, masked)
        finally:
            for _, _, future in begun:
                future.cancel()
        self.masked = frozenset(masked)
        self._asked = (completions, judgements)
        return judgements

    def begin(
        self,
        rows: Sequence[int],
        texts: Sequence[str],
        candidates: Sequence[Sequence[str]],
        category_word: Sequence[str],
    ) -> None:
        """Send some of the completions of the next :meth:`ask` ahead, without waiting for the answer.

        Args:
            rows: Their positions there.
            texts: Their texts.
            candidates: Their games' candidates.
            category_word: Their games' categories.
        """
        if self._pool is not None:
            future = self._pool.submit(self._judge, texts, candidates, category_word)
            self._begun.append((list(rows), list(texts), future))

    def take_latencies(self) -> list[float]:
        """Seconds of each request that was answered since the last call."""
        taken, self._latencies_s = self._latencies_s, []
        return taken

    def forget(self) -> None:
        """Drop what was sent ahead and not asked for."""
        for _, _, future in self._begun:
            future.cancel()
        self._begun = []

    def _judge(
        self, texts: Sequence[str], candidates: Sequence[Sequence[str]], category_word: Sequence[str]
    ) -> _Judged:
        """Judgement of each text, and the positions of those that the listener failed on."""
        descriptions = [parse_or_none(text) for text in texts]
        members: dict[tuple[tuple[str, ...], str], dict[str, list[int]]] = {}
        for row, description in enumerate(descriptions):
            if description is not None:
                key = (tuple(candidates[row]), category_word[row])
                members.setdefault(key, {}).setdefault(description.text, []).append(row)
        parts = [
            (key, told[start : start + MAX_DESCRIPTIONS])
            for key, told in ((key, list(of_game.items())) for key, of_game in members.items())
            for start in range(0, len(told), MAX_DESCRIPTIONS)
        ]
        games = [
            ScoreGame(candidates=paths, descriptions=tuple(text for text, _ in part), category=category)
            for (paths, category), part in parts
        ]
        judgements: list[Judgement | None] = [None] * len(texts)
        for (_, part), scores in zip(parts, self._score(games), strict=True):
            for index, (_, positions) in enumerate(part):
                for row in positions:
                    judgements[row] = _judgement(scores, index)
        pairs = enumerate(zip(descriptions, judgements, strict=True))
        return judgements, {row for row, (description, found) in pairs if description is not None and found is None}

    def _score(self, games: list[ScoreGame]) -> list[GameScores | None]:
        """Ask for all games at once; if that is refused, one by one, to find those that cannot be judged."""
        if not games:
            return []
        started = time.perf_counter()
        try:
            found: list[GameScores | None] = list(self._model.score(games))
            self._latencies_s.append(time.perf_counter() - started)
            return found
        except OUTAGES:
            raise
        except ListenerError as error:
            logger.warning("the listener refused a batch of %d games, asking one by one: %s", len(games), error)
        return [self._score_one(game) for game in games]

    def _score_one(self, game: ScoreGame) -> GameScores | None:
        try:
            return self._model.score([game])[0]
        except OUTAGES:
            raise
        except ListenerError as error:
            logger.warning("the listener could not judge a game about %s: %s", game.candidates[0], error)
            return None

    def __call__(
        self,
        completions: Sequence[Completion],
        candidates: Sequence[Sequence[str]],
        target_index: Sequence[int],
        category_word: Sequence[str],
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **_: Any,
    ) -> list[float | None]:
        """Reward completions, in order.

        Raises:
            ListenerUnavailableError: If nobody answers (``ListenerBusyError``: no free slot).
            TrainingError: If the listener could not judge more than the allowed share of them.
        """
        asked, self._asked = self._asked, None
        if asked is not None and asked[0] is completions:
            judgements = asked[1]
        else:
            judgements = self.ask(completions, candidates, category_word)
            self._asked = None
        if len(self.masked) > self._max_masked_frac * len(completions):
            raise TrainingError(
                f"the listener could not judge {len(self.masked)} of {len(completions)} completions; see its log, or "
                f"raise rewards.max_masked_frac (now {self._max_masked_frac}) if this is expected"
            )
        rewards = [self._reward(row, found, target_index[row]) for row, found in enumerate(judgements)]
        judged = [(found, target_index[row]) for row, found in enumerate(judgements) if found is not None]
        if log_metric is not None:
            _log_statistics(judged, len(self.masked) / len(completions), len(completions), log_metric)
        if log_extra is not None:
            log_extra("yes_probability", [list(found.yes_probability) if found else None for found in judgements])
            log_extra("target_index", list(target_index))
        return rewards

    def _reward(self, row: int, found: Judgement | None, target_index: int) -> float | None:
        if found is None:
            return None if row in self.masked else self._config.malformed
        return listener_reward(self._config.shape, found.yes_log_odds, found.yes_probability, target_index)


def _place(judged: _Judged, rows: Sequence[int], judgements: list[Judgement | None], masked: set[int]) -> None:
    """Put judgements of some rows where they belong."""
    for row, found in zip(rows, judged[0], strict=True):
        judgements[row] = found
    masked.update(rows[index] for index in judged[1])


def _judgement(scores: GameScores | None, index: int) -> Judgement | None:
    """One description's row; ``None`` if the listener failed or its numbers are not finite."""
    if scores is None or not all(math.isfinite(value) for value in scores.yes_log_odds[index]):
        return None
    return Judgement(scores.yes_log_odds[index], scores.yes_probability[index], scores.captured_mass[index])


def _log_statistics(
    judged: Sequence[tuple[Judgement, int]], masked_frac: float, total: int, log_metric: Callable[[str, float], None]
) -> None:
    """Log what the step says about the listener; malformed and masked completions count as not found."""
    log_metric("listener/masked_frac", masked_frac)
    log_metric("listener/accuracy", sum(is_first(found.yes_log_odds, target) for found, target in judged) / total)
    if judged:
        log_metric("listener/target_yes", fmean(found.yes_probability[target] for found, target in judged))
        log_metric("listener/posterior", fmean(posterior(found.yes_log_odds, target) for found, target in judged))
        log_metric("listener/captured_mass", fmean(fmean(found.captured_mass) for found, _ in judged))


class TextReward:
    """A reward that reads the text alone; ``None`` where the listener's reward of the same step is ``None``.

    Args:
        name: Shown in logs.
        function: Completion → reward.
        after: The listener's reward, which is called before this one.
    """

    def __init__(self, name: str, function: Callable[[str], float], after: ListenerReward | None = None) -> None:
        self.__name__ = name
        self._function, self._after = function, after

    def __call__(self, completions: Sequence[Completion], **_: Any) -> list[float | None]:
        """Reward completions, in order."""
        masked = self._after.masked if self._after is not None else frozenset()
        return [
            None if row in masked else self._function(completion_text(completion))
            for row, completion in enumerate(completions)
        ]


class HackReward:
    """A penalty of -1 for completions that cheat; ``None`` where the listener's reward of the same step is ``None``.

    Args:
        config: What is penalised.
        after: The listener's reward, which is called before this one.
    """

    __name__ = "hacks"

    def __init__(self, config: HacksRewardConfig, after: ListenerReward | None = None) -> None:
        self._penalised, self._after = frozenset(config.penalised), after

    def __call__(self, completions: Sequence[Completion], **columns: Any) -> list[float | None]:
        """Reward completions, in order."""
        masked = self._after.masked if self._after is not None else frozenset()
        found = [find_hacks(completion_text(c), game_of(columns, row)) for row, c in enumerate(completions)]
        return [None if row in masked else -float(bool(one & self._penalised)) for row, one in enumerate(found)]


def game_of(columns: Mapping[str, Sequence[Any]], row: int) -> Game:
    """What the completion of a row may have been copied from, as far as the data set says."""
    value = {
        name: columns[name][row] for name in columns if name in ("prompts", "query", "candidates", "category_word")
    }
    return Game(
        prompt=_prompt_text(value.get("prompts", "")),
        images=[*([value["query"]] if "query" in value else []), *value.get("candidates", ())],
        category=value.get("category_word", ""),
    )


def _prompt_text(prompt: Completion) -> str:
    if isinstance(prompt, str):
        return prompt
    contents = [message["content"] for message in prompt]
    parts = [part for content in contents for part in ([{"text": content}] if isinstance(content, str) else content)]
    return " ".join(part.get("text") or "" for part in parts)


def check_rewards(config: RewardsConfig) -> None:
    """Check that anything is rewarded; a penalty alone rewards nothing.

    Raises:
        ConfigError: If not.
    """
    parts = (config.listener, config.format, config.length, config.repetition, config.overlap)
    if not any(part.weight > 0 for part in parts):
        raise ConfigError("all rewards have weight 0; give at least rewards.listener.weight a value above 0")


def build_rewards(config: RewardsConfig, model: AnsweringModel | None) -> tuple[list[Reward], list[float]]:
    """Build the rewards with a weight above 0, the listener's first, and their weights.

    Args:
        config: Which rewards, and how much each counts.
        model: The listener; needed unless its reward's weight is 0.

    Raises:
        ConfigError: If nothing is rewarded, or there is no listener to ask.
    """
    check_rewards(config)
    listener = None
    if config.listener.weight > 0:
        if model is None:
            raise ConfigError("rewards.listener.weight is above 0, but no listener was given")
        listener = ListenerReward(model, config.listener, config.max_masked_frac, config.listener.requests)
    functions: dict[str, tuple[float, Callable[[str], float]]] = {
        "format": (config.format.weight, _format(config.format)),
        "length": (config.length.weight, _length(config.length)),
        "repetition": (config.repetition.weight, _repetition),
        "overlap": (config.overlap.weight, texts.overlap),
    }
    rewards: list[Reward] = [listener] if listener else []
    weights = [config.listener.weight] if listener else []
    for name, (weight, function) in functions.items():
        if weight > 0:
            rewards.append(TextReward(name, function, listener))
            weights.append(weight)
    if config.hacks.weight > 0 and config.hacks.penalised:
        rewards.append(HackReward(config.hacks, listener))
        weights.append(config.hacks.weight)
    return rewards, weights


def _format(config: FormatRewardConfig) -> Callable[[str], float]:
    return lambda completion: texts.format_reward(completion, config.min_thinking_words)


def _length(config: LengthRewardConfig) -> Callable[[str], float]:
    """Length of a completion; what cannot be parsed gets the least that the shape can give."""

    def reward(completion: str) -> float:
        description = parse_or_none(completion)
        if config.shape == "reference":
            return texts.reference_length(description) if description else -0.3
        if description is None:
            return 0.0
        return texts.smooth_length(description.detailed, config.min_words, config.max_words, config.slack)

    return reward


def _repetition(completion: str) -> float:
    description = parse_or_none(completion)
    return texts.repetition(description.detailed) if description else -1.0
