"""Ways to earn reward without describing the thing, found by name in a completion. Pure functions, no model.

Word lists and patterns find what is written, not what is meant: their shares are for watching a run, and err on the
side of finding.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import get_args

from lewis_core.config.watchdogs import HackName
from lewis_core.descriptions.lexicon import mentions_location, mentions_state, spans
from lewis_core.descriptions.overlap import copied_share
from lewis_core.descriptions.parse import FIELDS, is_template_echo, parse_or_none
from lewis_core.records import Description
from lewis_core.rewards.text import content_words, repetition

HACKS: tuple[HackName, ...] = get_args(HackName)
DEGENERATE: tuple[HackName, ...] = ("repetition", "tag_stuffing", "empty", "template_echo")
"""What a speaker writes that has lost its language."""
REPEATS, ECHOES = -0.5, 0.5
"""From here on a text counts as repetition (its reward), or as an echo of the prompt (share of its word trigrams)."""
FEW_WORDS = 2
_TAG = re.compile(r"<(/?)([A-Za-z_][^<>\s]{0,40})>|<\|[^|<>]*\|>")
_ASKED = frozenset((*FIELDS, "state", "location"))
_LISTENER_TALK = re.compile(
    r"\b(?:answer|say|reply|respond|output|choose|select|pick)\b[^.]{0,20}\b(?:yes|no|this)\b"
    r"|\byes\b(?:\W+\byes\b)+|\b(?:candidate|option|choice)\s+(?:number\s+)?(?:\d+|[A-Z])\b"
    r"|\b(?:correct|right)\s+(?:answer|image|photo|choice|candidate)\b|\bignore\s+(?:all|any|the|previous)\b"
    r"|\b(?:the|is)\s+target\b",
    re.IGNORECASE,
)
_NO_NAMES = frozenset({"train", "test", "negative", "images", "photos", "data"})


@dataclass(frozen=True)
class Game:
    """What a completion may have been copied from."""

    prompt: str = ""
    """What the speaker was asked."""
    images: Sequence[str] = ()
    """Paths of the photos of its game, whose parts are names of concepts and files."""
    category: str = ""
    """Word for the kind of thing, which is no name."""


def find_hacks(completion: str, game: Game = Game()) -> frozenset[HackName]:
    """Find the ways in which a completion cheats.

    Args:
        completion: The speaker's raw text.
        game: What it may have been copied from.

    Returns:
        Their names.
    """
    description = parse_or_none(completion)
    text = description.text if description else _TAG.sub(" ", completion)
    detailed = description.detailed if description else text
    found: dict[HackName, bool] = {
        "repetition": repetition(detailed) <= REPEATS,
        "tag_stuffing": stuffs_tags(completion),
        "copied_names": bool(copied_names(completion, game.images, game.category)),
        "empty": len(content_words(detailed)) < FEW_WORDS,
        "template_echo": _is_echo(completion, description, game.prompt),
        "listener_talk": _LISTENER_TALK.search(text) is not None,
        "state": mentions_state(text),
        "location": mentions_location(text),
        "malformed": description is None,
    }
    return frozenset(name for name, is_found in found.items() if is_found)


def stuffs_tags(completion: str) -> bool:
    """Tell whether a tag stands more than once, or one that no prompt asks for (``<sks>``, special tokens)."""
    tags = [(match[1] or "", match[2]) for match in _TAG.finditer(completion)]
    return len(set(tags)) < len(tags) or any(name not in _ASKED for _, name in tags)


def copied_names(text: str, images: Iterable[str], category: str) -> list[str]:
    """Find names of concepts and files that stand in a text.

    The folders and the stem of a photo's path are names, but for the category, for words that describe (a concept
    called ``red``), and for short numbers.

    Args:
        text: What was written.
        images: Paths of photos.
        category: Word for the kind of thing.

    Returns:
        The names, sorted.
    """
    names = {part for path in images for part in (*PurePosixPath(path).parent.parts, PurePosixPath(path).stem)}
    return sorted(name for name in names if _is_name(name, category) and _stands_in(name, text))


def _is_name(part: str, category: str) -> bool:
    plain = part.lower()
    if plain in _NO_NAMES or len(part) < 2 or (part.isdigit() and len(part) < 4):
        return False
    if plain.rstrip("s") == category.lower().rstrip("s"):
        return False
    return not (part.isalpha() and (spans(part) or plain in category.lower().split()))


def _stands_in(name: str, text: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text, re.IGNORECASE) is not None


def _is_echo(completion: str, description: Description | None, prompt: str) -> bool:
    if description is not None:
        return bool(prompt) and (copied_share(description.detailed, [prompt]) or 0.0) >= ECHOES
    fields = [re.search(rf"<{name}>(.*?)</{name}>", completion, re.DOTALL) for name in FIELDS]
    return any(match is not None and is_template_echo(match[1]) for match in fields)
