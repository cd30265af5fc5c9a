"""What a completion's text is worth by itself: form, length, repetition, talk of state and place. Pure functions."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable

from lewis_core.descriptions.parse import FIELDS, is_template_echo, parse_or_none
from lewis_core.descriptions.tokens import sentences, words
from lewis_core.records import Description

SAME_CONTENT = 0.6
"""Two sentences whose content words overlap this much (Jaccard) say the same thing."""
_SHARES = {"thinking": 0.34, "coarse": 0.33, "detailed": 0.33}
_STOP_WORDS = frozenset(
    (
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "been",
        "being",
        "by",
        "can",
        "does",
        "for",
        "from",
        "has",
        "have",
        "having",
        "he",
        "her",
        "his",
        "how",
        "in",
        "into",
        "is",
        "it",
        "its",
        "itself",
        "made",
        "material",
        "of",
        "on",
        "one",
        "or",
        "she",
        "some",
        "that",
        "the",
        "their",
        "them",
        "there",
        "these",
        "they",
        "this",
        "those",
        "to",
        "very",
        "was",
        "were",
        "what",
        "which",
        "who",
        "whose",
        "will",
        "with",
        "you",
        "your",
        "also",
    )
)


def content_words(text: str) -> list[str]:
    """Words that carry meaning, in order: all but articles, pronouns, auxiliaries and the like."""
    return [word for word in words(text) if word not in _STOP_WORDS]


def format_reward(completion: str, min_thinking_words: int = 0) -> float:
    """Reward well-formed tags: 0.34 for thinking, 0.33 for coarse, 0.33 for detailed.

    A field counts if its pair of tags encloses text that is more than the template's placeholder. A completion in
    which any tag occurs twice, or the fields overlap or are out of order, earns nothing at all.

    Args:
        completion: The speaker's raw text.
        min_thinking_words: Shorter thinking earns nothing for its tag.

    Returns:
        A value in [0, 1].

    Source:
        ``format`` of the reference; the defences against stuffed tags and echoes are ours.
    """
    tags = re.findall(r"<(/?(?:thinking|coarse|detailed))>", completion)
    order = [tag for field in FIELDS for tag in (field, f"/{field}")]
    if tags != [tag for tag in order if tag in tags]:
        return 0.0
    total = 0.0
    for field, share in _SHARES.items():
        match = re.search(rf"<{field}>(.*?)</{field}>", completion, re.DOTALL)
        text = match.group(1) if match and "<" not in match.group(1) else ""
        too_short = field == "thinking" and len(words(text)) < min_thinking_words
        total += 0.0 if is_template_echo(text) or too_short else share
    return round(total, 2)


def smooth_length(detailed: str, min_words: int, max_words: int, slack: int) -> float:
    """Reward the length of the detailed text: 1 inside the range, falling to 0 within ``slack`` words outside.

    Sentences that say what an earlier one said do not count towards the fewest words, so padding earns nothing; they
    do count towards the most.

    Args:
        detailed: The detailed text.
        min_words: Fewest words that earn the full reward.
        max_words: Most words that earn the full reward.
        slack: Words outside of the range over which the reward falls, linearly.

    Returns:
        A value in [0, 1].
    """
    told = sum(len(words(sentence)) for sentence, is_new in _told(detailed) if is_new)
    outside = max(min_words - told, len(words(detailed)) - max_words, 0)
    return max(0.0, 1.0 - outside / slack)


def reference_length(description: Description) -> float:
    """Penalise more than one detailed sentence or fewer than 20 words (0.2), and coarse unless 6 to 8 words (0.1).

    Returns:
        A value in [-0.3, 0].

    Source:
        ``length`` of the reference.
    """
    one_sentence = len(sentences(description.detailed)) <= 1
    detailed = 0.0 if one_sentence and len(words(description.detailed)) >= 20 else -0.2
    coarse = 0.0 if 6 <= len(words(description.coarse)) <= 8 else -0.1
    return detailed + coarse


def repeated_sentences(text: str) -> int:
    """Count sentences that say what an earlier one said, whatever the order and the small words.

    "It has a green handle. The handle is green." holds one: both are about ``{green, handle}``.
    """
    return sum(not is_new for _, is_new in _told(text))


def repeated_pairs(text: str) -> float:
    """Share of pairs of neighbouring content words (within a sentence, in either order) that occurred before.

    A word beside itself ("very, very" without the small words: "red red") counts as repeated at once.
    """
    pairs = [pair for sentence in sentences(text) for pair in _pairs(content_words(sentence))]
    if not pairs:
        return 0.0
    counts = Counter(pairs)
    distinct = sum(1 for pair in counts if len(pair) == 2)
    return 1.0 - distinct / len(pairs)


def repetition(text: str) -> float:
    """Penalise saying the same thing again: one half per repeated sentence, plus the share of repeated word pairs.

    Args:
        text: The detailed text.

    Returns:
        A value in [-1, 0].
    """
    return -min(1.0, 0.5 * repeated_sentences(text) + repeated_pairs(text))


def rouge2_overlap(detailed: str, state: str, location: str) -> float:
    """Penalise the detailed text for what it shares with a state and a location text.

    Returns:
        Minus the largest ROUGE-2 F1 of a detailed sentence against ``state location``, content words only; in
        [-1, 0], and 0 when both are empty.

    Source:
        ``overlap`` of the reference.
    """
    target = Counter(_ordered_pairs(content_words(f"{state} {location}")))
    best = 0.0
    for sentence in sentences(detailed):
        own = Counter(_ordered_pairs(content_words(sentence)))
        common = sum((own & target).values())
        if common:
            best = max(best, 2 * common / (sum(own.values()) + sum(target.values())))
    return -round(best, 4)


def scene_talk(description: Description) -> float:
    """Penalise words of state and of location in what the listener reads: one half for each.

    Returns:
        -1, -0.5 or 0.
    """
    from lewis_core.descriptions.lexicon import mentions_location, mentions_state

    return -0.5 * mentions_state(description.text) - 0.5 * mentions_location(description.text)


def overlap(completion: str) -> float:
    """Penalise state and location in a completion: the worse of :func:`scene_talk` and :func:`rouge2_overlap`.

    The latter compares with the completion's own ``<state>`` and ``<location>``, where a prompt asks for them.

    Returns:
        A value in [-1, 0]; -1 when the completion cannot be parsed.
    """
    state, location = (_tagged(completion, tag) for tag in ("state", "location"))
    description = parse_or_none(re.sub(r"<(state|location)>.*?</\1>", "", completion, flags=re.DOTALL))
    if description is None:
        return -1.0
    return min(scene_talk(description), rouge2_overlap(description.detailed, state, location))


def _told(text: str) -> list[tuple[str, bool]]:
    """Sentences of a text, each with whether it says something that none before it said."""
    seen: list[frozenset[str]] = []
    told = []
    for sentence in sentences(text):
        content = frozenset(content_words(sentence))
        told.append((sentence, not any(_jaccard(content, other) >= SAME_CONTENT for other in seen)))
        seen.append(content)
    return told


def _tagged(text: str, tag: str) -> str:
    match = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return match.group(1) if match else ""


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other) if one | other else 0.0


def _pairs(tokens: list[str]) -> Iterable[frozenset[str]]:
    return [frozenset(pair) for pair in _ordered_pairs(tokens)]


def _ordered_pairs(tokens: list[str]) -> list[tuple[str, str]]:
    return list(itertools.pairwise(tokens))
