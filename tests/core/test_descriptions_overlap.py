"""What texts share, worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lewis_core.descriptions.overlap import copied_share, distinct, ngrams, self_bleu

TEXTS = st.lists(st.text(alphabet="ab c", max_size=20), max_size=5)


def test_self_bleu_by_hand() -> None:
    # "a b c d" against "a b c e": 3 of 4 words; of 3, 2, 1 longer runs 2, 1, 0 are shared, one added to each count
    value = (3 / 4 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4)
    assert self_bleu(["a b c d", "A b, c e."]) == [pytest.approx(value), pytest.approx(value)]


def test_self_bleu_clips_repeated_words_and_punishes_brevity() -> None:
    # "a a" against "a b c": of two words one is clipped; no pair is shared, (0 + 1) / (1 + 1); exp(1 - 3 / 2)
    assert self_bleu(["a a", "a b c"])[0] == pytest.approx((1 / 2 * 1 / 2) ** 0.5 * 2.718281828**-0.5)
    # clipped to the most that one other text has, not to the sum of all
    assert self_bleu(["a a", "a b", "a c"])[0] == pytest.approx((1 / 2 * 1 / 2) ** 0.5)


def test_self_bleu_of_equal_unlike_and_lonely_texts() -> None:
    assert self_bleu(["it is red", "it is red"]) == [pytest.approx(1), pytest.approx(1)]
    assert self_bleu(["a b", "c d"]) == [0, 0]
    assert self_bleu(["a b"]) == [None]
    assert self_bleu(["", "a b"]) == [None, None]


@given(TEXTS)
def test_self_bleu_is_a_share(texts: list[str]) -> None:
    assert all(value is None or 0 <= value <= 1 + 1e-9 for value in self_bleu(texts))


def test_copied_share_is_that_of_the_nearest_source() -> None:
    # trigrams of the text: "a b c", "b c d", "c d e"; two stand in the second source
    assert copied_share("a b c d e", ["a b c", "b c d e"]) == pytest.approx(2 / 3)
    assert copied_share("a b", ["a b"]) is None
    assert copied_share("a b c", []) is None


def test_distinct_by_hand() -> None:
    # a, b, b, c: 3 of 4; pairs "a b" and "b c" stay within their texts
    assert distinct(["a b", "b c"], 1) == pytest.approx(3 / 4)
    assert distinct(["a b", "a b"], 2) == pytest.approx(1 / 2)
    assert distinct(["a"], 2) is None
    assert ngrams("One two, three!", 2) == [("one", "two"), ("two", "three")]
