"""Written answers: what counts as which choice, and what as none; with examples that the reference misread."""

import pytest

from lewis_core.evaluation.spoken import read_letter, read_yes_no

LETTERS = ("A", "B", "C")
OPTIONS = ("A red mug.", "A blue mug.", "It has stripes")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("B", 1, id="alone"),
        pytest.param(" b ", 1, id="lower-case-alone"),
        pytest.param("A.", 0, id="dot"),  # the reference read "A."
        pytest.param("(C)", 2, id="brackets"),
        pytest.param("B) A blue mug.", 1, id="with-its-text"),
        pytest.param("**B**", 1, id="bold"),
        pytest.param("Option C", 2, id="option"),
        pytest.param("Option C.", 2, id="option-dot"),
        pytest.param('{"Reasoning": "A is red, B is not.", "Answer": "B"}', 1, id="json"),
        pytest.param('```json\n{"Reasoning": "x", "Answer": ["A"]}\n```', 0, id="fenced-list"),
        pytest.param("the Answer is: B", 1, id="sentence"),  # the reference read "is B"
        pytest.param("The answer is B, because A is red.", 1, id="with-its-reason"),
        pytest.param("<thinking>A or B?</thinking> C", 2, id="thoughts-do-not-count"),
        pytest.param("a blue mug", 1, id="own-text"),
        pytest.param("It has stripes.", 2, id="own-text-with-dot"),
        pytest.param("I would choose B here", 1, id="the-only-letter"),
        pytest.param("A or B", None, id="either"),
        pytest.param("Answer: A, B", None, id="a-list"),
        pytest.param("A/B", None, id="a-slash"),
        pytest.param("between A and C", None, id="between"),
        pytest.param("A mug stands there", None, id="an-article-is-no-letter"),
        pytest.param("D", None, id="not-offered"),
        pytest.param("", None, id="empty"),
        pytest.param("because", None, id="a-word"),
    ],
)
def test_letters(text: str, expected: int | None) -> None:
    assert read_letter(text, LETTERS, OPTIONS) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("yes", 0, id="yes"),
        pytest.param("No.", 1, id="no-dot"),
        pytest.param("<yes>", 0, id="angle-brackets"),  # the reference read "<yes>"
        pytest.param("Yes, it is the same mug.", 0, id="sentence"),
        pytest.param('{"Reasoning": "It is not red.", "Answer": "no"}', 1, id="json"),
        pytest.param("The handle differs.\nno", 1, id="last-line"),
        pytest.param("answer: true", 0, id="true"),
        pytest.param("yes or no", None, id="both"),
        pytest.param("The nose is not known", None, id="no-inside-of-words"),  # the reference found "no" here
        pytest.param("", None, id="empty"),
        pytest.param("maybe", None, id="neither"),
    ],
)
def test_yes_and_no(text: str, expected: int | None) -> None:
    assert read_yes_no(text) == expected


def test_equal_options_cannot_be_told_apart_by_their_text() -> None:
    assert read_letter("it is red", ("A", "B"), ("It is red.", "It is red.")) is None
