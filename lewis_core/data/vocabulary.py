"""Words for categories: folder names are codes, prompts need nouns."""

from collections.abc import Mapping

CATEGORY_WORDS: Mapping[str, str] = {
    "all": "object",
    "decoration": "decoration object",
    "retail": "retail object",
    "tro_bag": "trolley bag",
    "veg": "vegetable",
}
"""PerVA's short names, and the one pseudo-category of data sets without categories."""


def category_word(category: str, name: str, overrides: Mapping[str, str]) -> str:
    """Word used in prompts for a concept's kind.

    Args:
        category: Folder name of the category.
        name: Folder name of the concept.
        overrides: Words from the settings, by category or by concept id (``category/name``), which goes first.

    Returns:
        The word; a name without an entry stands for itself, with spaces for underscores.
    """
    for key in (f"{category}/{name}", category):
        if key in overrides:
            return overrides[key]
    return CATEGORY_WORDS.get(category, category.replace("_", " ").strip())
