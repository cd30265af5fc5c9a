"""Answers that a model wrote: which of the choices does a text mean?

Read is what a person would accept: a letter alone or with punctuation, "Option B", "B. The red mug", the option's own
text, JSON or a sentence with the word "answer". Two different choices in one answer mean none, and so does a word that
merely contains a choice ("not" is no "no", "A mug" is no "A"): such an answer is invalid, and counted as that.
"""

import re
from collections.abc import Sequence

YES, NO = frozenset({"yes", "y", "true", "1"}), frozenset({"no", "n", "false", "0"})
THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|$)", re.DOTALL | re.IGNORECASE)
KEY = re.compile(r"""["']?\banswer["']?\s*(?:(?:is|would be)\b\s*:?|[:=])\s*""", re.IGNORECASE)
OPENING = re.compile(r"^[\s\[\](){}<>*_`\"'#:=-]*")
LETTER = re.compile(r"(?:option|choice|answer|letter)?\s*\(?\[?\b([A-Z])\b(?!['’])")
LEADING_LETTER = re.compile(
    r"(?:option|choice|letter)?\s*[\[(\"']*([A-Z])(?=[\])\"'.,:;!*/]|\s*$|\s*[-\N{EN DASH}]\s)", re.IGNORECASE
)
ARTICLE = re.compile(r"\bA\s+(?!(?:or|and|is)\b)[a-z]")
ANOTHER = re.compile(r"\W*\s*(?:or|and|,|/|&)\s*\(?([A-Z])\b")
WORD = re.compile(r"[a-z0-9]+")


def read_letter(text: str, letters: Sequence[str], options: Sequence[str] = ()) -> int | None:
    """Find which letter an answer means.

    Args:
        text: What the model wrote.
        letters: Letters that were offered, in their order.
        options: Texts behind them; an answer that is just one of them counts as its letter.

    Returns:
        Index of the letter; ``None`` if the answer means none, or more than one.
    """
    text = _without_thoughts(text)
    for part in (_after_key(text), text):
        if part is None:
            continue
        if (found := _leading_letter(part, letters)) is not None:
            return found
        if (found := _own_text(part, options)) is not None:
            return found
    named = {letter for letter in LETTER.findall(ARTICLE.sub("", text)) if letter in letters}
    return letters.index(named.pop()) if len(named) == 1 else None


def read_yes_no(text: str) -> int | None:
    """Find whether an answer means yes (0) or no (1); ``None`` if it means neither, or both."""
    text = _without_thoughts(text)
    for part in (_after_key(text), text):
        if part is None:
            continue
        words = WORD.findall(part.casefold())
        if words and (found := _yes_no(words[0])) is not None and not _contradicts(words, found):
            return found
    lines = [line for line in text.strip().splitlines() if line.strip()]
    last = WORD.findall(lines[-1].casefold()) if lines else []
    return _yes_no(last[0]) if len(last) == 1 else None


def _without_thoughts(text: str) -> str:
    return THOUGHT.sub("", text).strip()


def _after_key(text: str) -> str | None:
    """What follows the last "Answer:", "answer is" or ``"Answer":``."""
    found = [*KEY.finditer(text)]
    return text[found[-1].end() :] if found else None


def _leading_letter(text: str, letters: Sequence[str]) -> int | None:
    """A letter at the beginning that stands for itself; two of them ("A or B") mean none."""
    body = OPENING.sub("", text)
    found = LEADING_LETTER.match(body)
    if found is None or found[1].upper() not in letters:
        return None
    another = ANOTHER.match(body, found.end(1))
    return letters.index(found[1].upper()) if another is None or another[1] not in letters else None


def _own_text(text: str, options: Sequence[str]) -> int | None:
    """The option whose text this is; equal options cannot be told apart."""
    plain = _plain(text)
    same = [index for index, option in enumerate(options) if plain and _plain(option) == plain]
    return same[0] if len(same) == 1 else None


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _yes_no(word: str) -> int | None:
    return 0 if word in YES else 1 if word in NO else None


def _contradicts(words: Sequence[str], found: int) -> bool:
    """Whether "yes or no" was said, or the other word right after the first."""
    other = NO if found == 0 else YES
    return any(word in other and len(word) > 1 for word in words[1:3])
