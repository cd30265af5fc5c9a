"""The pocket world's language: facts to sentences, and text back to facts, exactly.

Every fact has two wordings per category. The set of sentences is finite, so a text is understood
by looking its sentences up, with no model in between. That is what makes the pocket world's
metrics exact: a statement is true, false, repeated, or not of the language.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from lewis_core.pocket.world import (
    CATEGORIES,
    COLORS,
    FACT_KEYS,
    KINDS,
    LOCATIONS,
    LOGOS,
    MATERIALS,
    PATTERNS,
    POSES,
    SHAPES,
)

PLACE_BY_LOCATION: Mapping[str, str] = {
    "table": "on a table",
    "grass": "on the grass",
    "beach": "on the beach",
    "snow": "in the snow",
    "tiles": "on a tiled floor",
    "carpet": "on a carpet",
    "brick wall": "by a brick wall",
    "bookshelf": "on a bookshelf",
    "window": "by a window",
    "road": "on the road",
}
QUESTION_BY_KEY: Mapping[str, str] = {
    "color": "What color is the {category}?",
    "pattern": "What pattern does the {category} have?",
    "material": "What is the {category} made of?",
    "shape": "What shape is the {category}?",
    "logo": "What logo is on the {category}?",
    "part": "What color is the {part}?",
    "pose": "How is the {category} placed?",
    "state": "In what state is the {category}?",
    "location": "Where is the {category}?",
}
COARSE_PREFIX = "A photo of "


class Statement(NamedTuple):
    """One understood sentence: the fact it is about and the value it claims."""

    key: str
    value: str


class ParsedText(NamedTuple):
    """What a text says: its statements in order, and how many sentences were not understood."""

    statements: tuple[Statement, ...]
    num_unparsed: int


def with_article(noun: str) -> str:
    """Put a or an before a noun."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _pattern_sentences(value: str) -> tuple[str, str]:
    if value == "plain":
        return "It is plain.", "It has no pattern."
    return f"It has {value}.", f"There are {value} on it."


def _logo_sentences(value: str) -> tuple[str, str]:
    if value == "none":
        return "It has no logo.", "There is no logo on it."
    return f"It has {with_article(value)} logo.", f"There is {with_article(value)} on it."


def sentences(key: str, value: str, category: str) -> tuple[str, str]:
    """Return both wordings of one fact about a thing of the category."""
    part = KINDS[category].part
    match key:
        case "color":
            return f"The {category} is {value}.", f"It is {with_article(value)} {category}."
        case "pattern":
            return _pattern_sentences(value)
        case "material":
            return f"It is made of {value}.", f"The material is {value}."
        case "shape":
            return f"It has a {value} shape.", f"The shape is {value}."
        case "logo":
            return _logo_sentences(value)
        case "part":
            return f"The {part} is {value}.", f"It has {with_article(value)} {part}."
        case "pose" | "state":
            return f"It is {value}.", f"The {category} is {value}."
        case "location":
            place = PLACE_BY_LOCATION[value]
            return f"It is {place}.", f"The {category} is {place}."
    raise KeyError(key)


def _values(key: str, category: str) -> tuple[str, ...]:
    decorated = {"pattern": PATTERNS, "logo": LOGOS}
    if key in decorated:
        none, *kinds = decorated[key]
        return (none, *(f"{color} {kind}" for color in COLORS for kind in kinds))
    return {
        "color": COLORS,
        "part": COLORS,
        "material": MATERIALS,
        "shape": SHAPES,
        "pose": POSES,
        "location": LOCATIONS,
        "state": KINDS[category].states,
    }[key]


VALUES: Mapping[tuple[str, str], tuple[str, ...]] = {
    (key, category): _values(key, category) for key in FACT_KEYS for category in CATEGORIES
}
"""All values of a fact, by ``(key, category)``."""

STATEMENTS: Mapping[str, Mapping[str, Statement]] = {
    category: {
        sentence: Statement(key, value)
        for key in FACT_KEYS
        for value in VALUES[key, category]
        for sentence in sentences(key, value, category)
    }
    for category in CATEGORIES
}
"""Every sentence of the language, by category; the same sentence never means two things."""


def parse_text(text: str, category: str) -> ParsedText:
    """Read a text about a thing of the category.

    A sentence with a noun of another category, a cut sentence or any other text counts as
    unparsed. A last sentence without its period is understood.
    """
    statements: list[Statement] = []
    num_unparsed = 0
    for sentence in re.split(r"(?<=\.)\s+|\n+", text.strip()):
        if not sentence.strip(" ."):
            num_unparsed += bool(sentence)
            continue
        statement = STATEMENTS[category].get(f"{sentence.strip().rstrip('.')}.")
        if statement is None:
            num_unparsed += 1
        else:
            statements.append(statement)
    return ParsedText(tuple(statements), num_unparsed)


def render_coarse(category: str) -> str:
    """Write the coarse description of a thing."""
    return COARSE_PREFIX + with_article(category)


def parse_coarse(coarse: str) -> str | None:
    """Return the category that a coarse description names, or None if it names none."""
    return {render_coarse(category): category for category in CATEGORIES}.get(coarse.strip().rstrip("."))


def join_description(coarse: str, detailed: str) -> str:
    """Join both levels into the text that listeners and evaluated models read."""
    return f"{coarse.rstrip('.')}. {detailed}"


def render_completion(thinking: str, coarse: str, detailed: str) -> str:
    """Write what a speaker answers."""
    return f"<thinking>{thinking}</thinking> <coarse>{coarse}</coarse> <detailed>{detailed}</detailed>"


def render_question(key: str, category: str) -> str:
    """Write the question that asks for one fact."""
    return QUESTION_BY_KEY[key].format(category=category, part=KINDS[category].part)


def render_option(key: str, value: str) -> str:
    """Write a value as the answer to its question."""
    return PLACE_BY_LOCATION[value] if key == "location" else value
