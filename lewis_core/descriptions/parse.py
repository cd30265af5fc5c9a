"""From a speaker's completion to a :class:`~lewis_core.records.Description`, or an error that says why not.

Training and evaluation read strictly: what a listener is shown is exactly what the three tags hold. The forgiving
rules of the reference implementation are kept for importing old files.
"""

import re

from lewis_core.errors import DescriptionError
from lewis_core.records import Description

FIELDS = ("thinking", "coarse", "detailed")
"""Tags of a completion, in their order."""
MAX_CHARACTERS = 8000
"""Longest text of a field, and of what the listener reads; the model service refuses longer descriptions."""
_TAG = re.compile(r"</?\s*[A-Za-z_]\w*\s*/?>|<\|[^|<>]*\|>")
_BLANK = re.compile(r"[\s.…_\-–*]+")
_TEMPLATE_ECHOES = frozenset(
    {
        *("", "the", "a", "an", "a photo of", "a photo of a", "a photo of an", "detailed description"),
        *("what tells it apart", "the coarse description", "the detailed description", "coarse description"),
    }
)
_KNOWN = "thinking|coarse|detailed|state|location"


def parse_description(completion: str) -> Description:
    """Read a completion of the form ``<thinking>…</thinking> <coarse>…</coarse> <detailed>…</detailed>``.

    Args:
        completion: The speaker's raw text, without prompt and special tokens.

    Returns:
        The three fields, with white space squeezed.

    Raises:
        DescriptionError: If a tag is missing, repeated, nested or out of order, if there is text outside of the
            tags, or if a field is empty, too long or repeats the prompt's template; names the first such reason.
    """
    for field in FIELDS:
        for tag in (f"<{field}>", f"</{field}>"):
            if (count := completion.count(tag)) != 1:
                raise DescriptionError(f"expected {tag} exactly once, found it {count} times")
    pattern = r"\s*".join(rf"<{field}>(.*?)</{field}>" for field in FIELDS)
    match = re.fullmatch(rf"\s*{pattern}\s*", completion, re.DOTALL)
    if match is None:
        raise DescriptionError("expected the tags thinking, coarse, detailed in this order, with no text outside")
    fields = {field: " ".join(text.split()) for field, text in zip(FIELDS, match.groups(), strict=True)}
    for field, text in fields.items():
        _check_field(field, text)
    found = Description(**fields)
    if len(found.text) > MAX_CHARACTERS:
        raise DescriptionError(f"the description has {len(found.text)} characters, at most {MAX_CHARACTERS} are read")
    return found


def _check_field(field: str, text: str) -> None:
    if stray := _TAG.search(text):
        raise DescriptionError(f"unexpected tag {stray.group()} inside of {field}")
    if is_template_echo(text):
        raise DescriptionError(f"{field} is empty or repeats the prompt's template: {text!r}")
    if len(text) > MAX_CHARACTERS:
        raise DescriptionError(f"{field} has {len(text)} characters, at most {MAX_CHARACTERS} are read")


def is_template_echo(text: str) -> bool:
    """Tell whether a field holds nothing but the prompt's placeholder, e.g. ``The ...``."""
    return _BLANK.sub(" ", text).strip().lower() in _TEMPLATE_ECHOES


def parse_or_none(completion: str) -> Description | None:
    """Read a completion as :func:`parse_description` does; ``None`` if it does not follow the format."""
    try:
        return parse_description(completion)
    except DescriptionError:
        return None


def parse_lenient(text: str, category_word: str | None = None) -> Description:
    """Read text by the reference's forgiving rules: for each field, the first rule that matches wins.

    Paired tags; else what follows the opening tag, up to the next tag or the end of its line; else, for coarse, a
    phrase that starts with "A photo of a", and for detailed, a sentence that starts with "The". Fields that are not
    found are empty.

    Args:
        text: A completion in any state.
        category_word: When given, a detailed sentence without tags must start with "The" and this word.

    Raises:
        DescriptionError: If neither coarse nor detailed is found.

    Source:
        ``parse_descriptions`` of the reference implementation, without its acceptance of the template's echo.
    """
    opening = r"The\s+\w+" if category_word is None else rf"The\s+{re.escape(category_word)}"
    thinking = _paired(text, "thinking") or _open(text, "thinking", one_line=False)
    coarse = _paired(text, "coarse") or _open(text, "coarse") or _search(r"A photo of a[^\n.]{5,50}", text, re.I)
    detailed = _paired(text, "detailed") or _open(text, "detailed") or _search(rf"{opening}[^.\n]{{20,200}}\.", text)
    fields = [_clean(field) for field in (thinking, coarse, detailed)]
    if not fields[1] and not fields[2]:
        raise DescriptionError(f"found neither a coarse nor a detailed description in {text[:80]!r}")
    return Description(thinking=fields[0], coarse=fields[1], detailed=fields[2])


def _paired(text: str, field: str) -> str:
    match = re.search(rf"<{field}>(.*?)</{field}>", text, re.DOTALL | re.IGNORECASE)
    return match.group(1).strip() if match else ""


def _open(text: str, field: str, one_line: bool = True) -> str:
    """What follows an opening tag without its partner, up to the next known tag."""
    match = re.search(rf"<{field}>(.*?)(?=</?(?:{_KNOWN})>|\Z)", text, re.DOTALL | re.IGNORECASE)
    found = match.group(1).strip() if match else ""
    return found.split("\n")[0] if one_line else found


def _search(pattern: str, text: str, flags: int = 0) -> str:
    match = re.search(pattern, text, flags)
    return match.group() if match else ""


def _clean(text: str) -> str:
    squeezed = " ".join(_TAG.sub(" ", text).split())
    return "" if is_template_echo(squeezed) else squeezed
