"""Descriptions that are not fit for an image, in all the ways in which a speaker could cheat.

A listener that accepts repeated, contradictory, cut or empty text teaches the speaker to write it.
So a listener's exercises hold all of these as negatives, and :func:`is_proper` decides, by exact
reading, that a text made here really is unfit.
"""

from collections.abc import Sequence

import numpy as np

from lewis_core.pocket.language import (
    VALUES,
    join_description,
    parse_text,
    render_coarse,
    sentences,
)
from lewis_core.pocket.world import (
    CATEGORIES,
    FACT_KEYS,
    IDENTITY_KEYS,
    KINDS,
    Facts,
    pick,
    pick_other,
)

SHARED_WORD_FRAC = 0.75
FILLERS = (
    "It.",
    "The.",
    "It is.",
    "It has.",
    "It is it.",
    "The object.",
    "It is an object.",
    "It has a color.",
    "It has a shape.",
    "This is a photo.",
    "I see it.",
    "There is.",
    "...",
    ".",
)


def wrong_value(rng: np.random.Generator, key: str, category: str, value: str) -> str:
    """Draw a wrong value; of two words ("blue star") one is often kept, as in a look-alike."""
    others = [other for other in VALUES[key, category] if other != value]
    if key in ("pattern", "logo") and " " in value and rng.random() < SHARED_WORD_FRAC:
        words = set(value.split())
        others = [other for other in others if words & set(other.split())]
    return pick(rng, others)


def say(rng: np.random.Generator, key: str, value: str, category: str) -> str:
    """Write one fact in one of its wordings."""
    return pick(rng, sentences(key, value, category))


def write_text(rng: np.random.Generator, facts: Facts, keys: Sequence[str]) -> str:
    """Write the facts of these keys, one sentence each, in random order."""
    order = [keys[index] for index in rng.permutation(len(keys))]
    return " ".join(say(rng, key, facts[key], facts["category"]) for key in order)


def is_proper(text: str, facts: Facts) -> bool:
    """Tell whether a detailed text says something, only true things, and nothing twice."""
    statements, num_unparsed = parse_text(text, facts["category"])
    keys = [statement.key for statement in statements]
    is_true = all(facts[key] == value for key, value in statements)
    return bool(keys) and not num_unparsed and len(set(keys)) == len(keys) and is_true


def corrupt_facts(rng: np.random.Generator, facts: Facts, keys: Sequence[str]) -> Facts:
    """Return a copy in which one to three of the facts of these keys are wrong."""
    num_wrong = min(len(keys), 1 + int(rng.random() < 0.35) + int(rng.random() < 0.2))
    corrupted = dict(facts)
    for index in rng.permutation(len(keys))[:num_wrong]:
        key = keys[index]
        corrupted[key] = wrong_value(rng, key, facts["category"], facts[key])
    return corrupted


def _wrong_nouns(rng: np.random.Generator, facts: Facts, keys: Sequence[str]) -> str:
    """Name another category, or a part that things of this category lack."""
    category, text = facts["category"], write_text(rng, facts, keys)
    part = KINDS[category].part
    other = pick_other(rng, CATEGORIES, category)
    wrong_part = pick_other(rng, [kind.part for kind in KINDS.values()], part)
    noun, wrong = (category, other) if rng.random() < 0.5 else (part, wrong_part)
    changed = text.replace(f" {noun}", f" {wrong}")
    return changed if changed != text else f"{say(rng, 'color', facts['color'], other)} {text}"


def _repeat(rng: np.random.Generator, facts: Facts, keys: Sequence[str]) -> str:
    """Say one fact two to four times, in the same wording or in both."""
    repeated = [pick(rng, keys)] * (1 + int(rng.random() * 3))
    return write_text(rng, facts, [*keys, *repeated])


def _repeat_in_other_words(rng: np.random.Generator, facts: Facts, keys: Sequence[str]) -> str:
    """Say one fact in both wordings, side by side or apart."""
    key = pick(rng, keys)
    first, second = sentences(key, facts[key], facts["category"])
    rest = [write_text(rng, facts, [other]) for other in keys if other != key]
    rest.insert(int(rng.integers(len(rest) + 1)), first)
    near = rest.index(first) + int(rng.integers(2))
    rest.insert(near if rng.random() < 0.5 else int(rng.integers(len(rest) + 1)), second)
    return " ".join(rest)


def _contradict(rng: np.random.Generator, facts: Facts, keys: Sequence[str]) -> str:
    """Add a statement that contradicts another."""
    key, category = pick(rng, keys), facts["category"]
    text = write_text(rng, facts, keys)
    against = say(rng, key, wrong_value(rng, key, category, facts[key]), category)
    return f"{text} {against}" if rng.random() < 0.7 else f"{against} {text}"


def _cut(rng: np.random.Generator, facts: Facts, keys: Sequence[str]) -> str:
    """Stop in the middle of a sentence."""
    words = write_text(rng, facts, keys).split(" ")
    kept = words[: max(1, int(rng.integers(len(words) + 1)))]
    if kept[-1].endswith("."):
        kept = kept[:-1] if len(kept) > 1 else kept
    return " ".join(kept) + ("." if rng.random() < 0.3 else "")


def _shuffle_words(rng: np.random.Generator, facts: Facts, keys: Sequence[str]) -> str:
    """Put the words in random order."""
    words = write_text(rng, facts, keys).split(" ")
    return " ".join(words[index] for index in rng.permutation(len(words)))


def _insert_fragment(rng: np.random.Generator, facts: Facts, keys: Sequence[str]) -> str:
    """Put a sentence without its end, or a filler, between proper ones."""
    parts = [say(rng, key, facts[key], facts["category"]) for key in keys]
    words = pick(rng, parts).rstrip(".").split(" ")
    fragment = " ".join(words[: max(1, int(rng.integers(len(words))))]) + "."
    if rng.random() < 0.5:
        fragment = pick(rng, FILLERS)
    parts.insert(int(rng.integers(len(parts) + 1)), fragment)
    return " ".join(parts)


def _drop_word(rng: np.random.Generator, facts: Facts, keys: Sequence[str]) -> str:
    """Leave one word out."""
    words = write_text(rng, facts, keys).split(" ")
    del words[int(rng.integers(len(words)))]
    return " ".join(words)


def _only_filler(rng: np.random.Generator, facts: Facts, keys: Sequence[str]) -> str:
    """Say nothing at all, once or more often."""
    del facts, keys
    return " ".join([pick(rng, FILLERS)] * (1 + int(rng.random() * 2)))


_BREAKS = (
    (_wrong_nouns, 0.18),
    (_repeat, 0.16),
    (_repeat_in_other_words, 0.18),
    (_contradict, 0.14),
    (_cut, 0.1),
    (_shuffle_words, 0.05),
    (_insert_fragment, 0.09),
    (_drop_word, 0.06),
    (_only_filler, 0.04),
)
_BREAK_WEIGHTS = np.array([weight for _, weight in _BREAKS])
_BREAK_CUMULATIVE = np.cumsum(_BREAK_WEIGHTS / _BREAK_WEIGHTS.sum())


def break_text(rng: np.random.Generator, facts: Facts, keys: Sequence[str]) -> str:
    """Write an unfit text about a thing from true facts: cut, repetitive, contradictory, empty.

    Returns:
        A detailed text for which :func:`is_proper` is False.
    """
    while True:
        index = int(np.searchsorted(_BREAK_CUMULATIVE, rng.random(), side="right"))
        text = _BREAKS[min(index, len(_BREAKS) - 1)][0](rng, facts, keys)
        if not is_proper(text, facts):
            return text


def describe_other_kind(rng: np.random.Generator, facts: Facts, keys: Sequence[str]) -> tuple[str, str]:
    """Describe a thing of another category that shares what facts it can.

    Returns:
        Its coarse description and its detailed text.
    """
    category = pick_other(rng, CATEGORIES, facts["category"])
    shared = {
        key: facts[key] if facts[key] in VALUES[key, category] else pick(rng, VALUES[key, category])
        for key in FACT_KEYS
    }
    text = write_text(rng, {**shared, "category": category}, keys)
    return render_coarse(category), text


def unfit_description(rng: np.random.Generator, facts: Facts, keys: Sequence[str], *, has_coarse: bool) -> str:
    """Write a description, coarse level included on demand, that a listener must refuse."""
    draw = rng.random()
    coarse, detailed = render_coarse(facts["category"]), ""
    if draw < 0.22:
        detailed = break_text(rng, facts, keys)
    elif draw < 0.30:
        coarse, detailed = describe_other_kind(rng, facts, keys)
        has_coarse = has_coarse or category_is_hidden(detailed)
    elif draw < 0.33 and has_coarse:
        coarse = render_coarse(pick_other(rng, CATEGORIES, facts["category"]))
        detailed = write_text(rng, facts, keys)
    elif draw < 0.345:
        return f"{coarse}."
    else:
        detailed = write_text(rng, corrupt_facts(rng, facts, keys), keys)
    return join_description(coarse, detailed) if has_coarse else detailed


def category_is_hidden(detailed: str) -> bool:
    """Tell whether a text names no category, so that it could be about a thing of any."""
    return not any(f" {category}" in detailed.lower() for category in CATEGORIES)


def random_keys(rng: np.random.Generator, frac: float, keys: Sequence[str] = IDENTITY_KEYS) -> list[str]:
    """Draw each key with the given probability."""
    return [key for key in keys if rng.random() < frac]
