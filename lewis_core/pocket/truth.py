"""Exact measurements where the truth is known: no model, only look-ups.

A description of a pocket photo is read sentence by sentence (:func:`.language.parse_text`) and
compared with ``facts.json``. A reader that cannot be charmed (:func:`exact_reader_scores`) plays
the game as well, which shows when a speaker has learnt to please its listener instead of telling
things apart. Multiple-choice questions come from the same facts.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lewis_core.errors import DataError
from lewis_core.pocket.language import parse_coarse, parse_text, render_option, render_question
from lewis_core.pocket.tasks import choose_options
from lewis_core.pocket.world import FACT_KEYS, IDENTITY_KEYS
from lewis_core.prompts import LETTERS
from lewis_core.records import Record
from lewis_core.seeding import stable_rng

PhotoFacts = dict[str, str]
QuestionEntry = dict[str, Any]


class DescriptionTruth(Record):
    """What exact reading finds in one description."""

    category_right: bool | None
    """Whether the coarse level names the right category; ``None`` if it names none."""
    named: tuple[str, ...]
    """Keys of identity facts that are mentioned, rightly or not, each once."""
    right: tuple[str, ...]
    """Keys of identity facts that are mentioned and never mentioned wrongly."""
    mentions_state: bool
    """Whether state or pose is mentioned, rightly or not."""
    mentions_location: bool
    """Whether the location is mentioned, rightly or not."""
    num_statements: int
    """Understood sentences."""
    num_repeated: int
    """Understood sentences about a fact that an earlier sentence was about."""
    num_unparsed: int
    """Sentences that are not of the language, or about another kind of thing."""

    @property
    def recall(self) -> float:
        """Share of the six identity facts that is rightly named."""
        return len(self.right) / len(IDENTITY_KEYS)

    @property
    def precision(self) -> float | None:
        """Share of the named identity facts that is right; ``None`` if none is named."""
        return len(self.right) / len(self.named) if self.named else None


def load_facts(root: Path) -> dict[str, PhotoFacts]:
    """Read ``facts.json`` of a rendered world: what is true of each photo, by path.

    Raises:
        DataError: If the file is missing or does not have the promised shape.
    """
    path = root / "facts.json"
    try:
        facts: dict[str, PhotoFacts] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    wanted = {"category", "concept", "split", *FACT_KEYS}
    for photo, known in facts.items():
        if missing := wanted - set(known):
            raise DataError(f"{path}: {photo}: expected {sorted(missing)}, found {sorted(known)}")
    return facts


def check_description(detailed: str, facts: Mapping[str, str], coarse: str = "") -> DescriptionTruth:
    """Compare a description with what is true of its photo."""
    statements, num_unparsed = parse_text(detailed, facts["category"])
    keys = [statement.key for statement in statements]
    wrong = {key for key, value in statements if facts[key] != value}
    named = tuple(key for key in IDENTITY_KEYS if key in keys)
    said_category = parse_coarse(coarse)
    return DescriptionTruth(
        category_right=said_category == facts["category"] if said_category else None,
        named=named,
        right=tuple(key for key in named if key not in wrong),
        mentions_state="state" in keys or "pose" in keys,
        mentions_location="location" in keys,
        num_statements=len(statements),
        num_repeated=len(keys) - len(set(keys)),
        num_unparsed=num_unparsed,
    )


def exact_reader_scores(detailed: str, candidates: Sequence[Mapping[str, str]]) -> list[float]:
    """Score photos by how well a text fits them, by exact reading.

    Returns:
        For each candidate its true statements minus its false ones, each fact counted once and
        every unparsed sentence as false. Text that fits all candidates equally ties.
    """
    scores = []
    for facts in candidates:
        statements, num_unparsed = parse_text(detailed, facts["category"])
        true = sum(facts[key] == value for key, value in set(statements))
        scores.append(float(2 * true - len(set(statements)) - num_unparsed))
    return scores


def build_questions(
    facts: Mapping[str, PhotoFacts], seed: int, num_options: int = 4
) -> dict[str, dict[str, list[QuestionEntry]]]:
    """Write multiple-choice questions about the identity facts of every concept.

    Each concept gets one question per identity fact, each about one of its test photos (its
    training photos if it has no others), in turn. Wrong options are other values of the same fact;
    there are fewer than ``num_options`` if the fact has fewer values.

    Returns:
        Concept id (``category/name``) → photo path → entries ``{"question", "options" by letter,
        "correct_answer"}``: the content of ``visual-qa.json``.
    """
    photos_by_concept: dict[str, list[str]] = {}
    for path, known in sorted(facts.items()):
        photos_by_concept.setdefault(f"{known['category']}/{known['concept']}", []).append(path)
    questions: dict[str, dict[str, list[QuestionEntry]]] = {}
    for concept, paths in photos_by_concept.items():
        shown = [path for path in paths if facts[path]["split"] == "test"] or paths
        rng = stable_rng(seed, "questions", concept)
        for index, key in enumerate(IDENTITY_KEYS):
            path = shown[index % len(shown)]
            known = facts[path]
            values, position = choose_options(rng, key, known["category"], known[key], num_options)
            options = [render_option(key, value) for value in values]
            entry = {
                "question": render_question(key, known["category"]),
                "options": dict(zip(LETTERS, options, strict=False)),
                "correct_answer": LETTERS[position],
            }
            questions.setdefault(concept, {}).setdefault(path, []).append(entry)
    return questions
