"""Reading completions: strictly, and by the forgiving rules of old files."""

import pytest

from lewis_core.descriptions.parse import parse_description, parse_lenient, parse_or_none
from lewis_core.errors import DescriptionError

GOOD = "<thinking>I see a mug.</thinking> <coarse>A photo of a mug</coarse> <detailed>The mug is red.</detailed>"


def test_reads_the_three_fields_and_squeezes_space() -> None:
    description = parse_description(
        "\n<thinking>I see\n a mug.</thinking>\n\n<coarse> A photo of a mug </coarse>"
        "<detailed>The  mug is red.</detailed>\n"
    )
    assert description.thinking == "I see a mug."
    assert description.coarse == "A photo of a mug"
    assert description.detailed == "The mug is red."
    assert description.text == "A photo of a mug. The mug is red."


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        pytest.param("", "<thinking> exactly once, found it 0", id="nothing"),
        pytest.param("The mug is red.", "<thinking> exactly once, found it 0", id="no-tags"),
        pytest.param(GOOD.replace("</detailed>", ""), "</detailed> exactly once, found it 0", id="cut-off"),
        pytest.param(GOOD + GOOD, "<thinking> exactly once, found it 2", id="said-twice"),
        pytest.param(
            GOOD.replace("</detailed>", "</detailed><detailed>It is old.</detailed>"),
            "<detailed> exactly once, found it 2",
            id="a-field-twice",
        ),
        pytest.param(GOOD + " And more.", "no text outside", id="text-after"),
        pytest.param("Sure! " + GOOD, "no text outside", id="text-before"),
        pytest.param(GOOD.replace("</coarse> <", "</coarse> so <"), "no text outside", id="text-between"),
        pytest.param(
            "<coarse>A photo of a mug</coarse> <thinking>I see it.</thinking> <detailed>The mug is red.</detailed>",
            "in this order",
            id="out-of-order",
        ),
        pytest.param(
            "<thinking>I see <coarse>a mug</coarse> <detailed>The mug is red.</detailed></thinking>",
            "in this order",
            id="nested",
        ),
        pytest.param(GOOD.replace("a mug.<", "a <b>mug</b>.<"), "unexpected tag <b>", id="stray-tag"),
        pytest.param(GOOD.replace("red.", "red.<|im_end|>"), r"unexpected tag <\|im_end\|>", id="special-token"),
        pytest.param(GOOD.replace("red.", "red. <state>new</state>"), "unexpected tag <state>", id="four-part-tag"),
        pytest.param(GOOD.replace("The mug is red.", "  "), "detailed is empty", id="empty"),
        pytest.param(GOOD.replace("The mug is red.", "..."), "detailed is empty", id="dots"),
        pytest.param(GOOD.replace("The mug is red.", "The ..."), "repeats the prompt's template: 'The ...'", id="echo"),
        pytest.param(
            GOOD.replace("A photo of a mug", "A photo of a …"), "coarse is empty or repeats", id="coarse-echo"
        ),
        pytest.param(GOOD.replace("I see a mug.", "what tells it apart"), "thinking is empty or", id="thinking-echo"),
        pytest.param(GOOD.replace("red.", "red " * 2500), "characters, at most 8000", id="too-long"),
        pytest.param(
            GOOD.replace("red.", "red " * 1500).replace("<coarse>", "<coarse>" + "mug " * 1000),
            "the description has .* characters, at most 8000",
            id="too-long-together",
        ),
    ],
)
def test_refuses_and_says_why(completion: str, reason: str) -> None:
    with pytest.raises(DescriptionError, match=reason):
        parse_description(completion)
    assert parse_or_none(completion) is None


def test_less_than_in_text_is_not_a_tag() -> None:
    assert parse_description(GOOD.replace("red.", "red, < 10 cm.")).detailed == "The mug is red, < 10 cm."


def test_parse_or_none_reads_what_is_well_formed() -> None:
    assert parse_or_none(GOOD) == parse_description(GOOD)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(GOOD, ("I see a mug.", "A photo of a mug", "The mug is red."), id="paired"),
        pytest.param(
            "<thinking>hm <coarse>A photo of a mug\nnonsense <detailed>The mug is red.\nand more",
            ("hm", "A photo of a mug", "The mug is red."),
            id="open-tags-end-at-tag-or-line",
        ),
        pytest.param(
            "It is a photo of a red mug on a table. The handle of it is green and rather large. Bye.",
            ("", "a photo of a red mug on a table", "The handle of it is green and rather large."),
            id="patterns",
        ),
        pytest.param("<coarse>A <b>red</b>  mug</coarse>", ("", "A red mug", ""), id="tags-stripped"),
        pytest.param("<coarse>A mug</coarse><detailed>The ...</detailed>", ("", "A mug", ""), id="echo-is-nothing"),
    ],
)
def test_lenient_rules_first_match_wins(text: str, expected: tuple[str, str, str]) -> None:
    found = parse_lenient(text)
    assert (found.thinking, found.coarse, found.detailed) == expected


def test_lenient_detailed_sentence_must_name_the_category_when_one_is_given() -> None:
    text = "A photo of a red mug. The handle of it is green and large. The mug has a green handle and dots."
    assert parse_lenient(text, "mug").detailed == "The mug has a green handle and dots."


def test_lenient_refuses_text_without_any_description() -> None:
    with pytest.raises(DescriptionError, match="neither a coarse nor a detailed"):
        parse_lenient("I cannot help with that.")
