"""How much texts share: word n-grams, self-BLEU, copying. Pure functions; words as in :mod:`.tokens`.

High values mean that descriptions are cut from one pattern, or recited from the prompt, and so tell little apart.
"""

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from lewis_core.descriptions.tokens import words

ORDERS = 4
"""Longest n-gram of BLEU."""
COPIED = 3
"""Words in a row that count as copied."""
Ngram = tuple[str, ...]


def ngrams(text: str, order: int) -> list[Ngram]:
    """Runs of ``order`` words of a text, in order."""
    found = words(text)
    return [tuple(found[start : start + order]) for start in range(len(found) - order + 1)]


def self_bleu(texts: Sequence[str]) -> list[float | None]:
    """Measure how well each text could be cut together from all the others: BLEU of each against the others.

    BLEU-4 with equal weights, n-grams clipped to the most that one other text has, the brevity penalty of the other
    text with the nearest length, and one added to the counts of bigrams and longer ones (Lin and Och 2004), so that
    short texts without a common 4-gram differ. Texts shorter than four words use the orders they have.

    Args:
        texts: Texts of one group, e.g. of one category.

    Returns:
        For each text a value in [0, 1], 1 when another text is the same; ``None`` where there are no words, or no
        other text.

    Source:
        Self-BLEU: Zhu et al. 2018, Texygen, arXiv:1802.01886.
    """
    lengths = [len(words(text)) for text in texts]
    tables = [_clips(texts, order) for order in range(1, ORDERS + 1)]
    values: list[float | None] = []
    for index, text in enumerate(texts):
        others = [length for other, length in enumerate(lengths) if other != index and length]
        if not lengths[index] or not others:
            values.append(None)
            continue
        logs = [_log_precision(Counter(ngrams(text, n)), tables[n - 1], index, smooth=int(n > 1))
                for n in range(1, min(ORDERS, lengths[index]) + 1)]  # fmt: skip
        nearest = min(others, key=lambda length: (abs(length - lengths[index]), length))
        values.append(math.exp(sum(logs) / len(logs) + min(0.0, 1 - nearest / lengths[index])))
    return values


def _clips(texts: Sequence[str], order: int) -> dict[Ngram, list[tuple[int, int]]]:
    """For each n-gram the two texts that have it most often: ``(count, text)``, most first."""
    best: dict[Ngram, list[tuple[int, int]]] = {}
    for index, text in enumerate(texts):
        for ngram, count in Counter(ngrams(text, order)).items():
            best[ngram] = sorted([*best.get(ngram, []), (count, index)], reverse=True)[:2]
    return best


def _log_precision(own: Counter[Ngram], best: dict[Ngram, list[tuple[int, int]]], index: int, smooth: int) -> float:
    """Logarithm of the share of n-grams that another text has; minus infinity when there is none."""
    common = sum(
        min(count, max((number for number, owner in best[ngram] if owner != index), default=0))
        for ngram, count in own.items()
    )
    share = (common + smooth) / (own.total() + smooth)
    return math.log(share) if share else -math.inf


def copied_share(text: str, sources: Sequence[str]) -> float | None:
    """Largest share of a text's word trigrams that stand in one source.

    Args:
        text: The text.
        sources: What it may have been copied from.

    Returns:
        A value in [0, 1]; ``None`` if the text has fewer than three words, or there is no source.
    """
    own = ngrams(text, COPIED)
    if not own or not sources:
        return None
    return max(sum(ngram in _copied(source) for ngram in own) for source in sources) / len(own)


@lru_cache(maxsize=4096)
def _copied(source: str) -> frozenset[Ngram]:
    """What a text may be recognised by in another."""
    return frozenset(ngrams(source, COPIED))


def distinct(texts: Sequence[str], order: int) -> float | None:
    """Distinct-n: different n-grams by all n-grams, over all texts; ``None`` if there are none.

    Source:
        Li et al. 2016, arXiv:1510.03055.
    """
    found = [ngram for text in texts for ngram in ngrams(text, order)]
    return len(set(found)) / len(found) if found else None
