"""Putting questions to a model: grouped by image, in blocks, each prompt once; and reading its answers.

Answers are read from probabilities, never from sampled text. Two rules hold everywhere: a tie is against the speaker,
and an answer is invalid when the model wanted to say something else than any of the choices.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

from lewis_core.evaluation.metrics import softmax
from lewis_core.listener.schemas import ChoiceAnswer, ChoiceItem, GameScores, Question, ScoreGame
from lewis_core.models.protocol import AnsweringModel
from lewis_core.reporting import Reporter, track

BLOCK = 512
"""Questions, or pairs of image and description, of one call."""
MAX_QUESTIONS = 256
"""Questions about one image in one item; more are split over several."""
MIN_MASS = 0.5
"""An answer is valid when the choices hold at least this share of the model's probability."""
Unit = TypeVar("Unit")


class Ask(NamedTuple):
    """One question about one image, or about none."""

    image: str | None
    prompt: str
    choices: tuple[str, ...]


class Answer(NamedTuple):
    """A question's answer."""

    answered: int | None
    """Index of the chosen answer; ``None`` when it is invalid."""
    probabilities: tuple[float, ...]
    """Over the choices, summing to 1."""
    captured_mass: float


@contextlib.contextmanager
def connect(service_url: str) -> Iterator[AnsweringModel]:
    """Connect to a model service for the length of a stage."""
    from lewis_core.listener.client import HttpModel

    with HttpModel(service_url) as model:
        yield model


def pick(scores: Sequence[float], expected: int | None) -> int:
    """Index of the greatest score; of several equal ones, a wrong one."""
    top = max(scores)
    tied = [index for index, score in enumerate(scores) if score == top]
    return next((index for index in tied if index != expected), tied[0])


def read_answer(answer: ChoiceAnswer, expected: int | None) -> Answer:
    """Read the answer to a question.

    Args:
        answer: What the model said.
        expected: Index of the right choice, for the tie rule.
    """
    probabilities = softmax(answer.log_probs)
    valid = answer.captured_mass >= MIN_MASS
    return Answer(pick(answer.log_probs, expected) if valid else None, probabilities, answer.captured_mass)


def ask_all(model: AnsweringModel, asks: Sequence[Ask], reporter: Reporter) -> list[ChoiceAnswer]:
    """Put questions; equal ones are put once.

    Args:
        model: Who answers.
        asks: Questions in any order.
        reporter: Receives progress.

    Returns:
        One answer per question, in their order.
    """
    items = _group(asks)
    total = sum(len(item.questions) for item in items)
    answers: dict[tuple[str | None, Question], ChoiceAnswer] = {}
    ticks = track(range(total), total, "questions", reporter)
    for block in _blocks(items, [len(item.questions) for item in items]):
        for item, replies in zip(block, model.choose(block), strict=True):
            for question, reply in zip(item.questions, replies, strict=True):
                answers[item.image, question] = reply
                next(ticks)
    next(ticks, None)
    return [answers[ask.image, Question(prompt=ask.prompt, choices=ask.choices)] for ask in asks]


def score_all(model: AnsweringModel, games: Sequence[ScoreGame], reporter: Reporter) -> list[GameScores]:
    """Score games in blocks; answers in their order."""
    scores: list[GameScores] = []
    sizes = [len(game.candidates) * len(game.descriptions) for game in games]
    ticks = track(range(len(games)), len(games), "games", reporter)
    for block in _blocks(games, sizes):
        for answer in model.score(block):
            scores.append(answer)
            next(ticks)
    next(ticks, None)
    return scores


def _group(asks: Sequence[Ask]) -> list[ChoiceItem]:
    """Collect the different questions of each image, images in order of first appearance."""
    questions: dict[str | None, dict[Question, None]] = {}
    for ask in asks:
        questions.setdefault(ask.image, {})[Question(prompt=ask.prompt, choices=ask.choices)] = None
    items = []
    for image, unique in questions.items():
        listed = tuple(unique)
        for start in range(0, len(listed), MAX_QUESTIONS):
            items.append(ChoiceItem(image=image, questions=listed[start : start + MAX_QUESTIONS]))
    return items


def _blocks(units: Sequence[Unit], sizes: Sequence[int]) -> Iterator[list[Unit]]:
    """Cut units into runs of about :data:`BLOCK`."""
    block: list[Unit] = []
    filled = 0
    for unit, size in zip(units, sizes, strict=True):
        if block and filled + size > BLOCK:
            yield block
            block, filled = [], 0
        block.append(unit)
        filled += size
    if block:
        yield block
