"""Words and sentences of any language."""

from lewis_core.descriptions.tokens import sentences, words


def test_words_of_any_script() -> None:
    assert words("Café-Tasse, it's «синяя» (No. 7)_x!") == ["café-tasse", "it's", "синяя", "no", "7", "x"]
    assert words("... -- '") == []


def test_sentences_end_at_stops_and_lines() -> None:
    assert sentences(" It is red! Is it 1.5 m?\nNo stop\n\n... Last. ") == [
        "It is red!",
        "Is it 1.5 m?",
        "No stop",
        "Last.",
    ]
