"""Putting questions to a model: grouped by image, in blocks, each prompt once; and reading its answers.

Answers are read from probabilities (:mod:`lewis_core.evaluation.spoken` reads them from text). Two rules hold
everywhere: a tie is against the speaker, and an answer is invalid when the model wanted to say something else than any
of the choices.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lewis_core.config.evaluation import Reading
from lewis_core.evaluation.blocks import Refused, put_in_blocks
from lewis_core.evaluation.journal import RememberingModel
from lewis_core.evaluation.metrics import softmax
from lewis_core.evaluation.records import Prediction
from lewis_core.evaluation.spoken import read_letter, read_yes_no
from lewis_core.listener.schemas import ChoiceAnswer, ChoiceItem, GameScores, GenerateItem, Question, ScoreGame
from lewis_core.models.answers import YES_NO
from lewis_core.models.protocol import AnsweringModel
from lewis_core.prompts import LETTERS
from lewis_core.reporting import Reporter, track

MAX_QUESTIONS = 256
"""Questions about one image in one item; more are split over several."""
MIN_MASS = 0.5
"""An answer is valid when the choices hold at least this share of the model's probability."""
LOGITS = Reading()
NOT_ANSWERED = "not answered: "
"""Beginning of the error of items that the model refused."""


class Ask(NamedTuple):
    """One question about one image, or about none."""

    image: str | None
    prompt: str
    choices: tuple[str, ...]


class Written(NamedTuple):
    """What a model wrote when it was asked a question."""

    text: str


Reply = ChoiceAnswer | Written | Refused


class Answer(NamedTuple):
    """A question's answer."""

    answered: int | None
    """Index of the chosen answer; ``None`` when it is invalid."""
    probabilities: tuple[float, ...]
    """Over the choices, summing to 1."""
    captured_mass: float


@contextlib.contextmanager
def connect(service_url: str, work_dir: Path) -> Iterator[AnsweringModel]:
    """Connect to a model service for the length of a stage.

    Args:
        service_url: Its address.
        work_dir: Keeps answers until the stage is finished, so that a killed one goes on where it was.
    """
    from lewis_core.listener.client import HttpModel

    with HttpModel(service_url) as model, RememberingModel(model, work_dir) as remembering:
        yield remembering


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


def ask_all(
    model: AnsweringModel, asks: Sequence[Ask], reporter: Reporter, reading: Reading = LOGITS
) -> Sequence[Reply]:
    """Put questions; equal ones are put once.

    Args:
        model: Who answers.
        asks: Questions in any order.
        reporter: Receives progress.
        reading: Whether answers are read from probabilities or from text.

    Returns:
        One answer per question, in their order; a refusal where the model could not answer.
    """
    if reading.answers == "generation":
        return _write_all(model, asks, reporter, reading.max_new_tokens)
    items = _group(asks)
    sizes = [len(item.questions) for item in items]
    answers: dict[tuple[str | None, Question], Reply] = {}
    ticks = track(range(sum(sizes)), sum(sizes), "questions", reporter)
    for item, replies in zip(items, put_in_blocks(model.choose, items, sizes), strict=True):
        for place, question in enumerate(item.questions):
            answers[item.image, question] = replies if isinstance(replies, Refused) else replies[place]
            next(ticks)
    next(ticks, None)
    return [answers[ask.image, Question(prompt=ask.prompt, choices=ask.choices)] for ask in asks]


def _write_all(model: AnsweringModel, asks: Sequence[Ask], reporter: Reporter, max_new_tokens: int) -> Sequence[Reply]:
    """Let the model write its answers, greedily."""
    items = list(
        dict.fromkeys(GenerateItem(image=a.image, prompt=a.prompt, max_new_tokens=max_new_tokens) for a in asks)
    )
    replies = track(put_in_blocks(model.generate, items, [1] * len(items)), len(items), "answers", reporter)
    written = {
        (item.image, item.prompt): reply if isinstance(reply, Refused) else Written(reply[0])
        for item, reply in zip(items, replies, strict=True)
    }
    return [written[ask.image, ask.prompt] for ask in asks]


def score_all(model: AnsweringModel, games: Sequence[ScoreGame], reporter: Reporter) -> list[GameScores | Refused]:
    """Score games; answers in their order, a refusal where the model could not answer."""
    sizes = [len(game.candidates) * len(game.descriptions) for game in games]
    return list(track(put_in_blocks(model.score, games, sizes), len(games), "games", reporter))


def record_answer(prediction: Prediction, reply: Reply, texts: Sequence[str] = ()) -> Prediction:
    """Write the answer to a question into its record, or why there is none.

    Args:
        prediction: The record; its options are yes and no, or what letters stand for.
        reply: The model's.
        texts: Texts behind the letters; an answer that is just one of them counts as its letter.
    """
    if isinstance(reply, Refused):
        return record_refusal(prediction, reply)
    if isinstance(reply, Written):
        is_yes_no = prediction.options == YES_NO and not texts
        letters = LETTERS[: len(prediction.options)]
        answered = read_yes_no(reply.text) if is_yes_no else read_letter(reply.text, letters, texts)
        return prediction.model_copy(update={"answered": answered, "response": reply.text})
    return prediction.model_copy(update=read_answer(reply, prediction.expected)._asdict())


def record_refusal(prediction: Prediction, reply: Refused) -> Prediction:
    """Write into a record why it has no answer."""
    return prediction.model_copy(update={"error": NOT_ANSWERED + reply.reason})


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
