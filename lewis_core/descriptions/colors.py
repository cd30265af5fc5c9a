"""Colours that a text names, as whole words: "cream-colored" is cream and never red."""

import re
from functools import lru_cache

from lewis_core.descriptions.lexicon import COLORS

_COLOR = re.compile(rf"\b(?:{COLORS})\b", re.IGNORECASE)
_SAME = {
    "grey": "gray",
    "golden": "gold",
    "violet": "purple",
    "aqua": "cyan",
    "multicoloured": "multicolored",
    "colourful": "multicolored",
    "colorful": "multicolored",
}
"""Other names of a colour."""


@lru_cache(maxsize=4096)
def colors(text: str) -> frozenset[str]:
    """Find the colours of a text; shades are dropped ("dark green" is green), other names are one colour."""
    found = (match.group().lower() for match in _COLOR.finditer(text))
    return frozenset(_SAME.get(color, color) for color in found)
