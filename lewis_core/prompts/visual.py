"""Prompt of the visual comparison: one picture with a query photo and lettered reference photos."""

from lewis_core.prompts import LETTERS

VISUAL_TEMPLATE = """\
The upper photo shows a {category}. The photos in the lower row, lettered {letters} from left to right, each show a \
{category}. One of them shows the very same {category} as the upper photo. Compare permanent features only: colour, \
shape, material, pattern, markings, and for people the face. Ignore pose, state and surroundings. Which one is it? \
Answer with its letter only."""


def visual_prompt(category: str, num_options: int) -> str:
    """Ask which lower photo shows the same thing as the upper one.

    Args:
        category: Category word.
        num_options: Photos in the lower row.
    """
    return VISUAL_TEMPLATE.format(category=category, letters=", ".join(LETTERS[:num_options]))
