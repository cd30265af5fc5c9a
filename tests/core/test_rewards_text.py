"""What text is worth by itself, by hand."""

import pytest

from lewis_core.descriptions.parse import parse_description
from lewis_core.records import Description
from lewis_core.rewards.text import (
    content_words,
    format_reward,
    overlap,
    reference_length,
    repeated_pairs,
    repeated_sentences,
    repetition,
    rouge2_overlap,
    scene_talk,
    smooth_length,
)

THINKING = "<thinking>I see a red mug.</thinking>"
COARSE = "<coarse>A photo of a mug</coarse>"
DETAILED = "<detailed>The mug is red.</detailed>"


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        pytest.param(f"{THINKING} {COARSE} {DETAILED}", 1.0, id="all"),
        pytest.param(f"{COARSE} {DETAILED}", 0.66, id="no-thinking"),
        pytest.param(THINKING, 0.34, id="thinking-alone"),
        pytest.param(f"<thinking>It.</thinking> {COARSE} {DETAILED}", 0.66, id="thinking-too-short"),
        pytest.param(f"{THINKING} {COARSE} <detailed>The mug", 0.67, id="cut-off"),
        pytest.param(f"{THINKING} {COARSE} <detailed>The ...</detailed>", 0.67, id="template-echo"),
        pytest.param(f"{THINKING} {COARSE} <detailed> </detailed>", 0.67, id="empty"),
        pytest.param("The mug is red.", 0.0, id="no-tags"),
        pytest.param(f"{DETAILED} {COARSE} {THINKING}", 0.0, id="out-of-order"),
        pytest.param(f"{THINKING} {COARSE} {COARSE} {DETAILED}", 0.0, id="stuffed"),
        pytest.param(f"{THINKING} {COARSE} {DETAILED} {DETAILED}", 0.0, id="stuffed-at-the-end"),
        pytest.param("<thinking><coarse><detailed>x y z</detailed></coarse></thinking>", 0.0, id="nested"),
    ],
)
def test_format(completion: str, expected: float) -> None:
    assert format_reward(completion, min_thinking_words=3) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("words", "expected"),
    [(8, 1.0), (20, 1.0), (6, 0.8), (3, 0.5), (0, 0.2), (25, 0.5), (30, 0.0), (60, 0.0)],
)
def test_smooth_length_falls_by_a_tenth_a_word(words: int, expected: float) -> None:
    # range 8 to 20, slack 10: 6 words are 2 too few, 1 - 2/10
    assert smooth_length("word " * words, min_words=8, max_words=20, slack=10) == pytest.approx(expected)


def test_padding_does_not_count_towards_the_fewest_words() -> None:
    # 13 words are told (5 + 5 + 3), 3 short of 16: 1 - 3 / 10; the fourth sentence repeats the third.
    told = "It is a blue bag. It has a regular shape. It is plain."
    assert smooth_length(told, min_words=16, max_words=45, slack=10) == pytest.approx(0.7)
    assert smooth_length(f"{told} It is plain.", min_words=16, max_words=45, slack=10) == pytest.approx(0.7)
    # but all words count towards the most: 16 words, 3 over 13.
    assert smooth_length(f"{told} It is plain.", min_words=1, max_words=13, slack=10) == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("coarse", "detailed", "expected"),
    [
        pytest.param("A photo of a red mug", "word " * 20 + ".", 0.0, id="as-wanted"),
        pytest.param("A photo of a red mug", "word " * 19 + ".", -0.2, id="too-short"),
        pytest.param("A photo of a red mug", "word " * 20 + ". And more.", -0.2, id="two-sentences"),
        pytest.param("A mug", "word " * 20 + ".", -0.1, id="coarse-too-short"),
        pytest.param("A mug", "Red.", -0.3, id="both"),
    ],
)
def test_reference_length(coarse: str, detailed: str, expected: float) -> None:
    assert reference_length(Description(thinking="x", coarse=coarse, detailed=detailed)) == pytest.approx(expected)


def test_content_words_leave_small_words_out() -> None:
    assert content_words("It has a Green handle, and it is made of wood.") == ["green", "handle", "wood"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("It has a green handle. The handle is green.", 1, id="other-order"),
        pytest.param("The base is green. The base is green. The base is green.", 2, id="literal"),
        pytest.param("It has white stripes. There are white stripes on it.", 1, id="other-words"),
        pytest.param("It is made of wood. The material is wood.", 1, id="material"),
        pytest.param("It has a red star logo. There is a red star on it.", 1, id="two-of-three-words"),
        pytest.param("The mug is red. It has red stripes.", 0, id="a-shared-colour-is-not-a-repetition"),
        pytest.param("The mug is red. The mug is round.", 0, id="a-shared-subject-is-not-a-repetition"),
        pytest.param("The mug is red.", 0, id="one-sentence"),
        pytest.param("", 0, id="nothing"),
    ],
)
def test_repeated_sentences(text: str, expected: int) -> None:
    assert repeated_sentences(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("A mug with a green handle whose handle is green.", 2 / 4, id="within-a-sentence"),
        # mug+green, green+handle, handle+handle (a word beside itself), handle+green (again): 2 of 4
        pytest.param("red red red red", 1.0, id="one-word"),
        pytest.param("A tall red mug with white dots.", 0.0, id="none"),
        pytest.param("It is red.", 0.0, id="no-pairs"),
    ],
)
def test_repeated_pairs(text: str, expected: float) -> None:
    assert repeated_pairs(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # one repeated sentence (0.5), pairs {green, handle} twice: one of two repeated (0.5)
        pytest.param("It has a green handle. The handle is green.", -1.0, id="same-again"),
        # one repeated sentence (0.5), pairs {red, mug}, {mug, red}, {white, dots}: one of three repeated
        pytest.param("It is a red mug. The mug is red. It has white dots.", -(0.5 + 1 / 3), id="one-of-three"),
        pytest.param("The base is green. The base is green. The base is green.", -1.0, id="never-below"),
        pytest.param("The mug is red. It has white dots. It is made of wood. It has a round shape.", 0.0, id="clean"),
        pytest.param("", 0.0, id="empty"),
    ],
)
def test_repetition(text: str, expected: float) -> None:
    assert repetition(text) == pytest.approx(expected)


def test_rouge2_takes_the_worst_sentence() -> None:
    # state and location: {standing upright, upright wooden, wooden table} (3 pairs);
    # second sentence: {mug wooden, wooden table} (2 pairs), one in common: F1 = 2·1 / (2 + 3) = 0.4
    detailed = "The mug is red. The mug is on a wooden table."
    assert rouge2_overlap(detailed, "standing upright", "on a wooden table") == pytest.approx(-0.4)
    assert rouge2_overlap(detailed, "", "") == 0.0


def test_scene_talk_is_half_for_state_and_half_for_location() -> None:
    def talk(detailed: str) -> float:
        return scene_talk(parse_description(f"{THINKING} {COARSE} <detailed>{detailed}</detailed>"))

    assert talk("The mug is red.") == 0.0
    assert talk("The mug is on a table.") == -0.5
    assert talk("The mug is tilted. The mug is on a table.") == -1.0


def test_overlap_of_what_cannot_be_parsed_is_the_worst() -> None:
    assert overlap("The mug is red.") == -1.0
    assert overlap(f"{THINKING} {COARSE} {DETAILED}") == 0.0


def test_overlap_reads_a_completions_own_state_and_location() -> None:
    tags = "<state>full of tea</state><location>kitchen shelf</location>"
    completion = f"{THINKING} {COARSE} <detailed>A kitchen shelf thing.</detailed> {tags}"
    # pairs: {full tea, tea kitchen, kitchen shelf} and {kitchen shelf, shelf thing}: F1 = 2·1 / (3 + 2) = 0.4
    assert overlap(completion) <= -0.4
