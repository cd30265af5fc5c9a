"""Ask a language model for JSON about many texts: read strictly, ask again a bounded number of times, lose nothing.

Answers are matched by id. An item that is missing, answered twice, or not of the promised form is asked for again,
alone and with a reminder, from the third time on with sampling; what still fails is listed with its reason. Answers
are kept on disk as they come, so that a killed stage goes on where it stopped.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from lewis_core.config.processing import JudgeConfig
from lewis_core.listener.schemas import MAX_TEXT, GenerateItem
from lewis_core.records import Record
from lewis_core.reporting import NullReporter, Reporter, track
from lewis_core.seeding import stable_seed

if TYPE_CHECKING:
    from lewis_core.models.text import TextModel

logger = logging.getLogger(__name__)
TEMPERATURE = 0.7
"""Of answers that are sampled."""
THINKING_END = "</think>"
Prompt = Callable[[Mapping[str, str], bool], str]
"""From texts by id, and whether to remind of the form, to a prompt."""


class Answer(BaseModel):
    """Base of what a model answers about one item: exact types; keys that were not asked for are dropped."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    id: str


class Failure(Record):
    """An item that could not be processed; a line of ``failures.jsonl``."""

    id: str
    reason: str
    attempts: int = 0
    """How often a model was asked."""
    completion: str = ""
    """The model's last answer."""


AnswerT = TypeVar("AnswerT", bound=Answer)


def find_json(completion: str) -> Any:
    """Find the first JSON array or object in a completion, after thinking; code fences and words around it are no harm.

    Raises:
        ValueError: If there is none that is complete.
    """
    text = completion.rpartition(THINKING_END)[2]
    decoder = json.JSONDecoder()
    start = min((place for sign in "[{" if (place := text.find(sign)) >= 0), default=-1)
    if start < 0:
        raise ValueError(f"found no JSON in {text.strip()[:80]!r}")
    try:
        return decoder.raw_decode(text, start)[0]
    except json.JSONDecodeError as error:
        raise ValueError(f"found no complete JSON: {error.msg} at character {error.pos}") from error
    except RecursionError as error:
        raise ValueError("found JSON that is nested too deeply") from error


def read_answers(completion: str, ids: Sequence[str], schema: type[AnswerT]) -> tuple[dict[str, AnswerT], str]:
    """Read a completion about several items.

    Args:
        completion: What the model wrote.
        ids: What was asked about.
        schema: Form of each answer.

    Returns:
        Answers by id, only of those asked about, once each and in the right form; and what was wrong with others.
    """
    try:
        value = find_json(completion)
    except ValueError as error:
        return {}, str(error)
    found: dict[str, AnswerT] = {}
    problems, seen = [], set()
    for entry in value if isinstance(value, list) else [value]:
        try:
            answer = schema.model_validate(entry)
        except ValidationError as error:
            first = error.errors()[0]
            problems.append(f"{'.'.join(map(str, first['loc'])) or 'an entry'}: {first['msg']}")
            continue
        if answer.id not in ids:
            problems.append(f"nobody asked about {answer.id!r}")
        elif answer.id in seen:
            problems.append(f"{answer.id!r} is answered twice")
            found.pop(answer.id, None)
        else:
            found[answer.id] = answer
        seen.add(answer.id)
    if missing := [key for key in ids if key not in seen]:
        problems.append(f"no answer about {', '.join(missing)}")
    return found, "; ".join(problems)


class AnswerFile(Generic[AnswerT]):
    """Answers that are kept as they come, one JSON object a line.

    Args:
        path: The file; what it holds already is read, up to a torn or damaged line.
        schema: Form of an answer; its ``id`` is the item's own.
    """

    def __init__(self, path: Path, schema: type[AnswerT]) -> None:
        self._path = path
        self.answers: dict[str, AnswerT] = {}
        whole = b""
        for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else []:
            try:
                answer = schema.model_validate_json(line)
            except ValidationError:
                break
            self.answers[answer.id] = answer
            whole += line if line.endswith(b"\n") else line + b"\n"
        path.write_bytes(whole)

    def keep(self, answer: AnswerT) -> None:
        """Add an answer."""
        self.answers[answer.id] = answer
        with self._path.open("a", encoding="utf-8") as file:
            file.write(answer.model_dump_json() + "\n")


def ask_for_json(
    model: "TextModel",
    texts: Mapping[str, str],
    prompt: Prompt,
    kept: AnswerFile[AnswerT],
    schema: type[AnswerT],
    config: JudgeConfig,
    batch_size: int = 64,
    reporter: Reporter | None = None,
    check: Callable[[AnswerT, str], str | None] = lambda answer, text: None,
) -> list[Failure]:
    """Ask about all texts whose answer is not kept yet.

    Args:
        model: Who answers.
        texts: Text by the item's id; the model sees other ids, made for the prompt.
        prompt: Writes the prompt.
        kept: Receives answers, as soon as they are read.
        schema: Form of an answer.
        config: Items in a prompt, attempts, lengths, seed.
        batch_size: Prompts of one call.
        reporter: Receives progress.
        check: Says what is wrong with an answer about a text, if anything is.

    Returns:
        Items that failed, in the order of ``texts``.
    """
    shown = {key: f"t{number}" for number, key in enumerate(texts, 1)}
    failures = {key: _too_long(key, text) for key, text in texts.items() if len(text) > MAX_TEXT}
    todo = [key for key in texts if key not in kept.answers and key not in failures]
    total = len(todo)
    ticks = track(range(total), total, "texts", reporter or NullReporter())
    for attempt in range(1, config.attempts + 1):
        groups = _groups(todo, texts, config.items_per_prompt if attempt == 1 else 1)
        for start in range(0, len(groups), batch_size):
            block = groups[start : start + batch_size]
            written = model.generate([_item(group, texts, shown, prompt, attempt, config) for group in block])
            for group, completions in zip(block, written, strict=True):
                found, problem = read_answers(completions[0], [shown[key] for key in group], schema)
                for key in group:
                    answer = found.get(shown[key])
                    wrong = problem if answer is None else check(answer, texts[key])
                    if answer is None or wrong:
                        reason = wrong or f"no answer about {shown[key]}"
                        failures[key] = Failure(id=key, reason=reason, attempts=attempt, completion=completions[0])
                        continue
                    failures.pop(key, None)
                    kept.keep(answer.model_copy(update={"id": key}))
                    next(ticks)
        todo = [key for key in todo if key in failures]
        if todo:
            logger.warning("attempt %d: %d of %d texts have no valid answer", attempt, len(todo), total)
    next(ticks, None)
    return [failures[key] for key in texts if key in failures]


def _groups(keys: Sequence[str], texts: Mapping[str, str], size: int) -> list[list[str]]:
    """Cut items into groups of a prompt each: at most ``size``, and no more text than two of the longest."""
    groups: list[list[str]] = []
    for key in keys:
        last = groups[-1] if groups else []
        fits = last and len(last) < size and sum(len(texts[other]) for other in (*last, key)) <= 2 * MAX_TEXT
        if fits:
            last.append(key)
        else:
            groups.append([key])
    return groups


def _too_long(key: str, text: str) -> Failure:
    return Failure(id=key, reason=f"the text has {len(text)} characters, at most {MAX_TEXT} are read")


def _item(
    group: Sequence[str],
    texts: Mapping[str, str],
    shown: Mapping[str, str],
    prompt: Prompt,
    attempt: int,
    config: JudgeConfig,
) -> GenerateItem:
    """Write the prompt of one attempt."""
    return GenerateItem(
        image=None,
        prompt=prompt({shown[key]: texts[key] for key in group}, attempt > 1),
        max_new_tokens=config.max_new_tokens,
        temperature=TEMPERATURE if attempt > 2 else 0.0,
        seed=stable_seed(config.seed, "process", group[0], str(attempt)) % 2**31,
    )
