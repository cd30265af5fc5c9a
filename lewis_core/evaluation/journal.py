"""Answers are kept while an evaluation runs, so that a killed one goes on where it was, item by item.

The journal lies in the stage's work folder, whose name is the stage's identity: same model, same prompts, same code.
It is gone once the result is published. A line that a kill cut off is asked again.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar

from pydantic import BaseModel, ValidationError

from lewis_core.listener.schemas import ChoiceAnswer, ChoiceItem, GameScores, GenerateItem, Question, ScoreGame
from lewis_core.models.protocol import AnsweringModel

logger = logging.getLogger(__name__)
JOURNAL = "answers.jsonl"
KEY_LENGTH = 32
AnswerT = TypeVar("AnswerT", bound=BaseModel)


class RememberingModel:
    """A model that is asked nothing twice, not even by the process that follows a killed one.

    Args:
        model: Who answers.
        folder: Receives :data:`JOURNAL`, or holds that of a killed process.
    """

    def __init__(self, model: AnsweringModel, folder: Path) -> None:
        self._model = model
        path = folder / JOURNAL
        self._known = load_journal(path)
        if self._known:
            logger.info("%d answers are there from before; only the others are asked for", len(self._known))
        self._file: IO[str] = path.open("a", encoding="utf-8")

    def choose(self, items: Sequence[ChoiceItem]) -> list[list[ChoiceAnswer]]:
        """Answer multiple-choice questions, those from memory that were answered before."""
        keys = [[_key("choose", item.image, question) for question in item.questions] for item in items]
        missing = [
            ChoiceItem(image=item.image, questions=open_questions)
            for item, row in zip(items, keys, strict=True)
            if (open_questions := self._open(item.questions, row))
        ]
        if missing:
            self._keep(
                (_key("choose", item.image, question), answer)
                for item, answers in zip(missing, self._model.choose(missing), strict=True)
                for question, answer in zip(item.questions, answers, strict=True)
            )
        return [[self._recall(key, ChoiceAnswer) for key in row] for row in keys]

    def score(self, games: Sequence[ScoreGame]) -> list[GameScores]:
        """Score games, those from memory that were scored before."""
        keys = [_key("score", None, game) for game in games]
        missing = {key: game for key, game in zip(keys, games, strict=True) if key not in self._known}
        if missing:
            self._keep(zip(missing, self._model.score([*missing.values()]), strict=True))
        return [self._recall(key, GameScores) for key in keys]

    def generate(self, items: Sequence[GenerateItem]) -> list[list[str]]:
        """Continue prompts, those from memory that were continued before."""
        keys = [_key("generate", None, item) for item in items]
        missing = {key: item for key, item in zip(keys, items, strict=True) if key not in self._known}
        if missing:
            self._keep(zip(missing, self._model.generate([*missing.values()]), strict=True))
        return [list(self._known[key]) for key in keys]

    def close(self) -> None:
        """Close the journal."""
        self._file.close()

    def __enter__(self) -> "RememberingModel":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, questions: Sequence[Question], keys: Sequence[str]) -> tuple[Question, ...]:
        return tuple(question for question, key in zip(questions, keys, strict=True) if key not in self._known)

    def _recall(self, key: str, kind: type[AnswerT]) -> AnswerT:
        value = self._known[key]
        return value if isinstance(value, kind) else kind.model_validate(value)

    def _keep(self, answers: Iterable[tuple[str, Any]]) -> None:
        """Remember answers, here and on disk; a line reaches the kernel before its block counts as done."""
        lines = []
        for key, answer in answers:
            self._known[key] = answer
            plain = answer.model_dump() if isinstance(answer, BaseModel) else answer
            lines.append(json.dumps([key, plain], separators=(",", ":")) + "\n")
        self._file.write("".join(lines))
        self._file.flush()


def load_journal(path: Path) -> dict[str, Any]:
    """Read what a killed process had answered; lines that are not whole are left out, the last one cut off.

    Args:
        path: The journal; need not be there.

    Returns:
        Answers as JSON, by key.
    """
    if not path.is_file():
        return {}
    known: dict[str, Any] = {}
    whole, _, torn = path.read_bytes().rpartition(b"\n")
    for line in whole.split(b"\n"):
        try:
            key, value = json.loads(line)
        except (ValueError, TypeError):
            continue
        if isinstance(key, str) and _is_answer(value):
            known[key] = value
    if torn:
        with path.open("rb+") as file:
            file.truncate(len(whole) + 1 if whole else 0)
    return known


def _is_answer(value: object) -> bool:
    """Whether a stored value is one of the three kinds of answers."""
    if isinstance(value, list):
        return all(isinstance(text, str) for text in value)
    for kind in (ChoiceAnswer, GameScores):
        try:
            kind.model_validate(value)
        except ValidationError:
            continue
        return True
    return False


def _key(kind: str, image: str | None, asked: BaseModel) -> str:
    return hashlib.sha256(f"{kind}\0{image}\0{asked.model_dump_json()}".encode()).hexdigest()[:KEY_LENGTH]
