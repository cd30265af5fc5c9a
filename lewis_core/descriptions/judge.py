"""Which descriptions talk of state or place? A language model, two yes-or-no questions, or a word list decides.

The result has the reference's form (``loc_state_stats.json``): rates and mean length over the texts that were judged,
and one line for each, matched by id. Texts that could not be judged are listed in ``failures.jsonl`` and counted. A
judge is measured too: ``agreement.json`` says how often it agrees with the word list and, for texts of the pocket
world's language, with an exact reading.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lewis_core.artifacts import ArtifactRef
from lewis_core.config.base import Runtime
from lewis_core.config.processing import JudgeConfig
from lewis_core.descriptions.answers import Answer, AnswerFile, Failure, ask_for_json
from lewis_core.descriptions.formats import ITEMS, DescriptionItem, load_content, read_items
from lewis_core.descriptions.lexicon import mentions_location, mentions_state
from lewis_core.errors import EvaluationError
from lewis_core.listener.schemas import ChoiceAnswer, ChoiceItem, Question
from lewis_core.models.answers import YES_NO
from lewis_core.pocket.language import parse_text
from lewis_core.pocket.world import CATEGORIES
from lewis_core.prompts import PromptSet, prompt_set
from lewis_core.prompts.processing import judge_prompt
from lewis_core.records import JsonObject, Record, load_jsonl, save_jsonl, save_record
from lewis_core.reporting import Reporter, track

if TYPE_CHECKING:
    from lewis_core.models.text import TextModel

logger = logging.getLogger(__name__)
STATS, FAILURES, AGREEMENT = "loc_state_stats.json", "failures.jsonl", "agreement.json"
MIN_MASS = 0.5
"""A yes or no counts when the two words hold at least this share of the model's probability."""


class Judgement(Answer):
    """What a judge says about one text."""

    has_state: bool
    """Whether a state, pose or action is mentioned."""
    has_location: bool
    """Whether a place or surroundings are mentioned."""


class JudgedText(Record):
    """One line of the reference's ``response``."""

    id: str
    has_state: bool
    has_location: bool
    length: int
    """Words, separated by blanks."""
    text: str


class JudgeStats(Record):
    """Means over the texts that were judged; ``None`` if there are none."""

    mean_state: float | None
    mean_location: float | None
    mean_length: float | None


class JudgedFile(Record):
    """The reference's file of judgements: ``loc_state_stats.json``."""

    stats: JudgeStats
    response: tuple[JudgedText, ...]


class Agreement(Record):
    """How often a judge and another reader of the same texts say the same."""

    reader: str
    """``lexicon``: the word list. ``exact``: sentence by sentence, for texts of the pocket world only."""
    about: str
    """``state`` or ``location``."""
    n: int
    """Texts that both have read."""
    share: float | None
    """Share of the same answer, in [0, 1]."""
    both: int
    """Texts in which both find it."""
    judge_only: int
    reader_only: int
    neither: int


def judge_descriptions(
    descriptions: ArtifactRef,
    config: JudgeConfig,
    output_dir: Path,
    work_dir: Path,
    runtime: Runtime,
    reporter: Reporter,
) -> JsonObject:
    """Find descriptions that mention a state or a location.

    Args:
        descriptions: Artifact of ``import-descriptions``, ``refine-descriptions`` or ``describe-concepts``.
        config: Who judges, and how.
        output_dir: Receives ``loc_state_stats.json``, ``failures.jsonl`` and ``agreement.json``.
        work_dir: Keeps answers of a run that was killed.
        runtime: Device, batch size.
        reporter: Receives progress and the rates.

    Returns:
        Counts, and the means.

    Raises:
        EvaluationError: If no text could be judged, or any failed and ``fail_on_error`` is set.
        ModelError: If the model cannot be loaded.
    """
    items = load_items(descriptions)
    texts = {item.id: item.text for item in items if item.text}
    silent = [Failure(id=i.id, reason=i.error or "there is no text") for i in items if not i.text]
    kept = AnswerFile(work_dir / "judgements.jsonl", Judgement)
    failures = [*judge(texts, kept, config, runtime, reporter), *silent]
    judged = judged_file(texts, kept.answers)
    agreements = measure_agreement(items, kept.answers)
    save_jsonl(output_dir / FAILURES, failures)
    save_record(output_dir / STATS, judged)
    listed = [agreement.model_dump() for agreement in agreements]
    (output_dir / AGREEMENT).write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
    check_failures("judged", failures, len(judged.response), config)
    stats = judged.stats.model_dump()
    reporter.log_metrics({name: value for name, value in stats.items() if value is not None})
    return {
        "method": config.method,
        "texts": len(items),
        "judged": len(judged.response),
        "failed": len(failures),
        **stats,
    }


def load_items(descriptions: ArtifactRef) -> list[DescriptionItem]:
    """Read the descriptions of an artifact: its ``items.jsonl``, or its ``database.json``.

    Raises:
        DataError: If they cannot be read.
    """
    if (descriptions.path / ITEMS).is_file():
        return load_jsonl(descriptions.file(ITEMS), DescriptionItem)
    return read_items(load_content(descriptions.file("database.json")), "database.json")[1]


def check_failures(what: str, failures: Sequence[Failure], done: int, config: JudgeConfig) -> None:
    """Warn of failures, or end on them.

    Raises:
        EvaluationError: If nothing was done, or something failed and that is not allowed.
    """
    if not failures:
        return
    first = failures[0]
    message = f"{len(failures)} of {len(failures) + done} texts could not be {what}, e.g. {first.id!r}: {first.reason}"
    if not done or config.fail_on_error:
        raise EvaluationError(f"{message}; try another model or judge.method, or more judge.attempts")
    logger.warning("%s", message)


def judge(
    texts: Mapping[str, str], kept: AnswerFile[Judgement], config: JudgeConfig, runtime: Runtime, reporter: Reporter
) -> list[Failure]:
    """Judge texts that were not judged yet, by the configured method.

    Returns:
        Texts that could not be judged.
    """
    if config.method == "lexicon":
        for key, text in texts.items():
            if key not in kept.answers:
                kept.keep(Judgement(id=key, has_state=mentions_state(text), has_location=mentions_location(text)))
        return []
    from lewis_core.models.text import open_text_model

    model = open_text_model(config.model, runtime)
    if config.method == "yes_no":
        return judge_by_yes_no(model, texts, prompt_set(config.model.prompts), kept, runtime.batch_size, reporter)
    return ask_for_json(model, texts, judge_prompt, kept, Judgement, config, runtime.batch_size, reporter)


def judge_by_yes_no(
    model: "TextModel",
    texts: Mapping[str, str],
    prompts: PromptSet,
    kept: AnswerFile[Judgement],
    batch_size: int,
    reporter: Reporter,
) -> list[Failure]:
    """Ask about state and about location of each text, and read the probabilities of yes and no; even odds are no.

    Returns:
        Texts for which the model wanted to say something else.
    """
    todo = [key for key in texts if key not in kept.answers]
    failures = []
    ticks = track(range(len(todo)), len(todo), "texts", reporter)
    for start in range(0, len(todo), batch_size):
        block = todo[start : start + batch_size]
        asked = [
            tuple(
                Question(prompt=ask(texts[key]), choices=YES_NO)
                for ask in (prompts.judge_state, prompts.judge_location)
            )
            for key in block
        ]
        answers = model.choose([ChoiceItem(image=None, questions=questions) for questions in asked])
        for key, (state, location) in zip(block, answers, strict=True):
            next(ticks)
            mass = min(state.captured_mass, location.captured_mass)
            if mass < MIN_MASS:
                reason = (
                    f"the model wanted to say something else than yes or no: they hold {mass:.2f} of its probability"
                )
                failures.append(Failure(id=key, reason=reason, attempts=1))
            else:
                kept.keep(Judgement(id=key, has_state=_says_yes(state), has_location=_says_yes(location)))
    next(ticks, None)
    return failures


def _says_yes(answer: ChoiceAnswer) -> bool:
    yes, no = answer.log_probs
    return yes > no


def judged_file(texts: Mapping[str, str], judgements: Mapping[str, Judgement]) -> JudgedFile:
    """Join texts and judgements by id, in the order of the texts."""
    response = tuple(
        JudgedText(
            id=key,
            has_state=judgements[key].has_state,
            has_location=judgements[key].has_location,
            length=len(text.split()),
            text=text,
        )
        for key, text in texts.items()
        if key in judgements
    )
    return JudgedFile(
        stats=JudgeStats(
            mean_state=_mean([float(row.has_state) for row in response]),
            mean_location=_mean([float(row.has_location) for row in response]),
            mean_length=_mean([float(row.length) for row in response]),
        ),
        response=response,
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def read_exactly(item: DescriptionItem) -> Judgement | None:
    """Read a text of the pocket world's language; ``None`` if it is of another, in whole or in part."""
    if item.category not in CATEGORIES:
        return None
    statements, num_unparsed = parse_text(item.detailed, item.category)
    if num_unparsed or not statements:
        return None
    keys = {statement.key for statement in statements}
    return Judgement(id=item.id, has_state=bool(keys & {"state", "pose"}), has_location="location" in keys)


def read_by_lexicon(item: DescriptionItem) -> Judgement:
    """Read a text by word list."""
    return Judgement(id=item.id, has_state=mentions_state(item.text), has_location=mentions_location(item.text))


def measure_agreement(items: Sequence[DescriptionItem], judgements: Mapping[str, Judgement]) -> list[Agreement]:
    """Compare a judge with the word list and with exact reading."""
    readers: dict[str, Callable[[DescriptionItem], Judgement | None]] = {
        "lexicon": read_by_lexicon,
        "exact": read_exactly,
    }
    found = []
    for name, reader in readers.items():
        read = [(judgements[item.id], other) for item in items if item.id in judgements and (other := reader(item))]
        for about in ("state", "location"):
            pairs = [(getattr(mine, f"has_{about}"), getattr(other, f"has_{about}")) for mine, other in read]
            found.append(_agreement(name, about, pairs))
    return found


def _agreement(reader: str, about: str, pairs: Sequence[tuple[bool, bool]]) -> Agreement:
    return Agreement(
        reader=reader,
        about=about,
        n=len(pairs),
        share=_mean([float(mine == other) for mine, other in pairs]),
        both=pairs.count((True, True)),
        judge_only=pairs.count((True, False)),
        reader_only=pairs.count((False, True)),
        neither=pairs.count((False, False)),
    )
