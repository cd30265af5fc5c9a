"""Prompts about pictures that are put together: a query photo above lettered ones, or beside a reference photo."""

from lewis_core.prompts import LETTERS

VISUAL_TEMPLATE = """\
The upper photo shows a {category}. The photos in the lower row, lettered {letters} from left to right, each show a \
{category}. One of them shows the very same {category} as the upper photo. Compare permanent features only: colour, \
shape, material, pattern, markings, and for people the face. Ignore pose, state and surroundings. Which one is it? \
Answer with its letter only."""


PAIR_TEMPLATE = """\
The picture holds two photos. The left one shows my {category}.{description} Is this very {category} in the right \
photo? Compare permanent features only: colour, shape, material, pattern, markings, and for people the face. Ignore \
pose, state and surroundings. Answer yes or no."""


def pair_prompt(category: str, description: str | None) -> str:
    """Ask whether the right photo of a pair shows the thing of the left one; yes or no.

    Args:
        category: Category word.
        description: What is written about the thing, if that is to be read as well.
    """
    said = "" if description is None else f" It is described like this: {description}"
    return PAIR_TEMPLATE.format(category=category, description=said)


def visual_prompt(category: str, num_options: int) -> str:
    """Ask which lower photo shows the same thing as the upper one.

    Args:
        category: Category word.
        num_options: Photos in the lower row.
    """
    return VISUAL_TEMPLATE.format(category=category, letters=", ".join(LETTERS[:num_options]))
