"""Words and sentences of a text, the same for rewards and for evaluations."""

import re

_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


def words(text: str) -> list[str]:
    """Split text into lower-case words; punctuation is dropped, hyphens and apostrophes inside of words stay."""
    return _WORD.findall(text.lower())


def sentences(text: str) -> list[str]:
    """Split text after ., ! or ? followed by white space, and at line ends; what holds no word is left out."""
    return [part for part in _SENTENCE_END.split(text.strip()) if words(part)]
