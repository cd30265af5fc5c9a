"""Prompt of the listener's own training: do two photos show the very same thing?"""

from collections.abc import Mapping

PAIR_TEMPLATES: Mapping[str, str] = {
    "concise": "Do both photos show the same {category}? Answer yes or no.",
    "instruct": """\
Compare the main subject of photo 1 with that of photo 2. Is the {category} in photo 1 the very same {category} as in \
photo 2? Another {category} of the same kind does not count. Compare permanent features only: colour, shape, material, \
pattern, markings, and for people the face. Ignore clothing, accessories, pose, state and surroundings.

Think first about what the photos have in common and where they differ, then answer in exactly this form:
<thinking>what you compared</thinking>
<answer>yes or no</answer>""",
}
"""Wording by the name of the prompt set."""


def pair_prompt(name: str, category: str) -> str:
    """Ask whether two photos show the same thing; yes or no.

    Args:
        name: Name of the prompt set.
        category: Category word.
    """
    return PAIR_TEMPLATES[name].format(category=category)
