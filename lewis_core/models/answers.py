"""Which tokens count as an answer.

A model may say ``yes`` as "yes", "Yes", " yes" or "YES", each a token of its own. All spellings of an answer that
are one token are summed, so that a model is not judged by its habit of spelling.
"""

from collections.abc import Sequence
from typing import Any

from lewis_core.errors import ModelError

YES_NO = ("yes", "no")


def spellings(choice: str) -> tuple[str, ...]:
    """Spellings of an answer: as given, in lower, upper and title case, each with and without a space in front.

    A single letter keeps its case: "a" is a word, not a way to write option A.
    """
    cased = (choice,) if len(choice) == 1 else (choice, choice.lower(), choice.capitalize(), choice.upper())
    return tuple(dict.fromkeys(space + text for text in cased for space in ("", " ")))


def answer_token_ids(tokenizer: Any, choices: Sequence[str]) -> list[list[int]]:
    """Find the tokens that stand for each choice.

    Args:
        tokenizer: A tokenizer of transformers.
        choices: The answers, e.g. ``("yes", "no")`` or letters.

    Returns:
        Sorted token ids of each choice, disjoint. Where no spelling of a choice is a single token, the first tokens
        of its spellings stand for it.

    Raises:
        ModelError: If two choices cannot be told apart by one token.
    """
    found = [_single_tokens(tokenizer, choice) or _first_tokens(tokenizer, choice) for choice in choices]
    owner: dict[int, str] = {}
    for choice, ids in zip(choices, found, strict=True):
        if not ids:
            raise ModelError(f"the tokenizer has no token that begins the answer {choice!r}")
        for token in ids:
            if token in owner:
                raise ModelError(
                    f"the answers {owner[token]!r} and {choice!r} begin with the same token of this model; "
                    "offer them under letters"
                )
            owner[token] = choice
    return [sorted(ids) for ids in found]


def _single_tokens(tokenizer: Any, choice: str) -> set[int]:
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in spellings(choice)]
    return {ids[0] for ids in encoded if len(ids) == 1}


def _first_tokens(tokenizer: Any, choice: str) -> set[int]:
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in spellings(choice)]
    return {ids[0] for ids in encoded if ids and tokenizer.decode(ids[:1]).strip()}
