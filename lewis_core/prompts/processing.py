"""Prompts that judge and refine descriptions: JSON in, JSON out, items told apart by id.

The questions are the reference implementation's; the wording is ours, and the examples are valid JSON. Ids are made
for the prompt: a concept's name is never shown.
"""

import json
from collections.abc import Mapping, Sequence

JUDGE_TEMPLATE = """\
You check descriptions of things. For each item of the JSON array below, decide two questions about its text.

has_state: does it mention something that passes, such as a pose, an action or a temporary condition of the subject? \
Permanent looks (colour, material, pattern, shape, marks, parts) are no state.
has_location: does it mention where the subject is, such as a place, a surface, the background or things around it? \
Parts of the subject, and names like "table lamp" or "beach bag", are no location.

Answer with a JSON array and nothing else. It has one object for each item, with its id:
[{{"id": "...", "has_state": true or false, "has_location": true or false}}]

Example input:
{example_input}
Example answer:
{example_answer}

Input:
{items}
{reminder}Answer:"""

REFINE_TEMPLATE = """\
You edit descriptions of things. From the text of each item of the JSON array below, remove {what}. Keep all other \
words as they are, keep every permanent feature (colour, material, pattern, shape, marks, parts), add nothing, and \
leave whole sentences. A text without anything to remove stays as it is.

Answer with a JSON array and nothing else. It has one object for each item, with its id:
[{{"id": "...", "text": "..."}}]

Example input:
{example_input}
Example answer:
{example_answer}

Input:
{items}
{reminder}Answer:"""

REMINDER = "Answer with the JSON array only: no other words, no code fence.\n"
_STATE = "every mention of something that passes: a pose, an action or a temporary condition of the subject"
_LOCATION = "every mention of where the subject is: a place, a surface, the background or things around it"
WHAT_BY_MODE: Mapping[str, str] = {
    "state": _STATE,
    "location": _LOCATION,
    "location_and_state": f"{_STATE}; and {_LOCATION}",
}
_DOG, _TOWER = (
    "A small white dog with a brown patch over its left eye, lying asleep on a grey sofa.",
    "The tower has a round brick body and a green copper roof.",
)
_REFINED_DOG: Mapping[str, str] = {
    "state": "A small white dog with a brown patch over its left eye, on a grey sofa.",
    "location": "A small white dog with a brown patch over its left eye, lying asleep.",
    "location_and_state": "A small white dog with a brown patch over its left eye.",
}
_EXAMPLE = [{"id": "t1", "text": _DOG}, {"id": "t2", "text": _TOWER}]
_JUDGED = [
    {"id": "t1", "has_state": True, "has_location": True},
    {"id": "t2", "has_state": False, "has_location": False},
]


def judge_prompt(texts: Mapping[str, str], remind: bool = False) -> str:
    """Ask which texts mention a state or a location.

    Args:
        texts: Text by id.
        remind: Say once more that nothing but JSON is wanted.
    """
    return JUDGE_TEMPLATE.format(
        example_input=_dump(_EXAMPLE),
        example_answer=_dump(_JUDGED),
        items=_items(texts),
        reminder=REMINDER if remind else "",
    )


def refine_prompt(texts: Mapping[str, str], mode: str, remind: bool = False) -> str:
    """Ask for texts without state, location, or both.

    Args:
        texts: Text by id.
        mode: ``state``, ``location`` or ``location_and_state``.
        remind: Say once more that nothing but JSON is wanted.
    """
    answer = [{"id": "t1", "text": _REFINED_DOG[mode]}, {"id": "t2", "text": _TOWER}]
    return REFINE_TEMPLATE.format(
        what=WHAT_BY_MODE[mode],
        example_input=_dump(_EXAMPLE),
        example_answer=_dump(answer),
        items=_items(texts),
        reminder=REMINDER if remind else "",
    )


def _items(texts: Mapping[str, str]) -> str:
    return _dump([{"id": key, "text": text} for key, text in texts.items()])


def _dump(items: Sequence[Mapping[str, object]]) -> str:
    return json.dumps(items, ensure_ascii=False)
