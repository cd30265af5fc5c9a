"""The word lists: the pocket world's language exactly, and photo descriptions as people and models write them."""

from itertools import pairwise

import pytest

from lewis_core.descriptions.lexicon import mentions_location, mentions_state, spans
from lewis_core.pocket.language import STATEMENTS, render_coarse
from lewis_core.pocket.world import CATEGORIES, IDENTITY_KEYS


def test_every_sentence_of_the_pocket_world_is_told_apart() -> None:
    wrong = [
        (category, sentence, statement.key)
        for category, statements in STATEMENTS.items()
        for sentence, statement in statements.items()
        if (mentions_state(sentence), mentions_location(sentence))
        != (statement.key in ("pose", "state"), statement.key == "location")
    ]
    assert wrong == []


def test_every_identity_sentence_has_something_to_highlight() -> None:
    silent = {
        sentence
        for statements in STATEMENTS.values()
        for sentence, statement in statements.items()
        if statement.key in IDENTITY_KEYS and not any(span.kind == "identity" for span in spans(sentence))
    }
    assert silent == set()


@pytest.mark.parametrize("category", CATEGORIES)
def test_coarse_descriptions_say_nothing(category: str) -> None:
    assert spans(f"{render_coarse(category)}.") == ()


@pytest.mark.parametrize(
    ("text", "state", "location"),
    [
        ("A photo of a brown teddy bear sitting on a wooden bench.", True, True),
        ("The dog is lying on the grass with its mouth open.", True, True),
        ("The umbrella is being held by a person in the street.", True, True),
        ("The bottle stands next to a window.", True, True),
        ("The pillow is placed on a grey sofa.", True, True),
        ("The clock hangs on a brick wall.", True, True),
        ("The cat is asleep, curled up by the fireplace.", True, True),
        ("The mug is filled with coffee.", True, False),
        ("The figure is holding a red flag.", True, False),
        ("The box is upside down.", True, False),
        ("A photo of a small plush toy on a table.", False, True),
        ("The bag is displayed against a white background.", False, True),
        ("The toy duck is outdoors, near some rocks.", False, True),
        ("The shoe is shown from the side in a store.", False, True),
        ("The cup is surrounded by books on a wooden desk.", False, True),
        ("A photo of a vase in front of a large, bright window.", False, True),
        ("The mug has a red handle and a white star logo on the front.", False, False),
        ("It has no logo. The handle is green.", False, False),
        ("The bag has an open weave and a leather strap.", False, False),
        ("The running shoes have blue laces and a thick white sole.", False, False),
        ('The white ceramic mug has the text "Hello" on a black background.', False, False),
        ("The shirt has a floral pattern with pink flowers on a white background.", False, False),
        ("The lamp has a round base and a vintage-looking shade.", False, False),
        ("The box features a smooth, glossy surface with rounded edges.", False, False),
        ("The backpack has two zippered pockets and a handheld strap at the top.", False, False),
        ("The tree-shaped vase has leaves on its side.", False, False),
        ("The handle is on the left side of the body.", False, False),
        ("The box has a window-shaped cutout on the lid.", False, False),
        ("The pattern on the wall of the mug is blue.", False, False),
        ("The keyboard has white keys with black letters on the top surface.", False, False),
        ("The hat has a wide brim with a ribbon around it.", False, False),
        ("The sandals are open-toed with clean lines.", False, False),
        ("", False, False),
    ],
)
def test_photo_descriptions(text: str, state: bool, location: bool) -> None:
    assert (mentions_state(text), mentions_location(text)) == (state, location)


def test_spans_are_positions_in_the_text() -> None:
    text = "The dark blue mug is steaming on a wooden table."
    assert [(text[span.start : span.end], span.kind) for span in spans(text)] == [
        ("dark blue", "identity"),
        ("steaming", "state"),
        ("on a wooden table", "location"),  # wooden belongs to the place, not to the mug
    ]


def test_spans_never_overlap_and_tags_are_no_words() -> None:
    text = "<state>open</state> A red brick house by a brick wall, standing on its side."
    found = spans(text)
    assert all(first.end <= second.start for first, second in pairwise(found))
    assert [text[span.start : span.end] for span in found if span.kind == "state"] == ["open", "standing on its side"]
    assert spans("<open> </table>") == ()


def test_a_long_text_is_read_quickly() -> None:
    import time

    started = time.perf_counter()
    spans("in " * 3000 + "the very very big " * 1000)
    assert time.perf_counter() - started < 1.0
