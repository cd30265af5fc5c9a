"""Multiple-choice questions that come with a data set: the reference's ``visual-qa.json`` → normalised items.

The file maps a concept (``category/name``, or a name that is unique in the catalog) to images, and each image path to
one question or a list of them: ``{"question": …, "options": {"A": …, "B": …}, "correct_answer": "A"}``. The image path
``""`` asks the memory alone. The thing is called ``<sks>`` (``sks`` in other people's copies). Entries that cannot be
used are named, never guessed at.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from lewis_core.data.layout import SetAside
from lewis_core.errors import CatalogError, DataError
from lewis_core.records import Catalog, Concept, VqaItem

_BARE_PLACEHOLDER = re.compile(r"(?<![\w<])sks(?![\w>])")


def read_questions(path: Path, catalog: Catalog) -> tuple[list[VqaItem], list[SetAside]]:
    """Read a question file.

    Args:
        path: The file.
        catalog: Concepts and usable images that questions may be about.

    Returns:
        Items, sorted by concept and then in the file's order, with ids ``<concept>:<n>``; and the entries that cannot
        be used, named ``<file>: <concept>: <image>`` with the reason.

    Raises:
        CatalogError: If the file is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CatalogError(f"{path} is not a JSON file of questions: {error}") from error
    if not isinstance(content, dict):
        raise CatalogError(f"{path}: expected an object of concepts, found a {type(content).__name__}")
    found: dict[str, list[VqaItem]] = {}
    set_aside = []
    for key, image, entry in _iter_entries(content):
        try:
            concept = _find_concept(catalog, key)
            items = found.setdefault(concept.id, [])
            items.append(_parse_entry(f"{concept.id}:{len(items)}", concept, image, entry))
        except DataError as error:
            set_aside.append(SetAside(path=f"{path.name}: {key}: {image}", reason=str(error)))
    return [item for _, items in sorted(found.items()) for item in items], set_aside


def _iter_entries(content: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Every (concept key, image path, question), in the file's order."""
    for key, images in content.items():
        if not isinstance(images, dict):
            yield key, "", images
            continue
        for image, questions in images.items():
            for entry in questions if isinstance(questions, list) else [questions]:
                yield key, image, entry


def _find_concept(catalog: Catalog, key: str) -> Concept:
    """Find a concept by id, or by a name that only one has.

    Raises:
        DataError: If none or several fit.
    """
    fitting = [concept for concept in catalog.concepts if key in (concept.id, concept.name)]
    if not fitting:  # This-Is-My-Img names a thing "Alexs hat-hat" on disk, "Alexs hat" in its questions
        fitting = [concept for concept in catalog.concepts if f"{key}-{concept.category_word}" == concept.name]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(concept.id for concept in fitting)
        raise DataError(f"the name is not unique; write category/name: {names}")
    raise DataError("no such concept in the catalog")


def _parse_entry(item_id: str, concept: Concept, image: str, entry: Any) -> VqaItem:
    """Turn one question into a record.

    Raises:
        DataError: If a field is missing or of another kind, or the answer is not among the options.
    """
    if not isinstance(entry, dict):
        raise DataError(f"expected an object with question, options and correct_answer, found {entry!r:.80}")
    question, options = entry.get("question"), entry.get("options")
    if not isinstance(question, str) or not question.strip():
        raise DataError("key 'question': expected text")
    if not isinstance(options, dict) or len(options) < 2 or not all(_is_text(text) for text in options.values()):
        raise DataError("key 'options': expected an object of two or more letters with their texts")
    letters = sorted(options)
    return VqaItem(
        id=item_id,
        concept=concept.id,
        image=_find_image(concept, image),
        question=_restore_placeholder(question),
        options=tuple(_restore_placeholder(options[letter]) for letter in letters),
        correct=_find_answer(letters, options, entry.get("correct_answer")),
    )


def _restore_placeholder(text: str) -> str:
    """Write the placeholder with its brackets, which some copies of the published files have lost."""
    return _BARE_PLACEHOLDER.sub("<sks>", text)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _find_answer(letters: list[str], options: Mapping[str, str], answer: object) -> int:
    """Position of the right option, named by its letter or by its text.

    Raises:
        DataError: If it is neither.
    """
    if isinstance(answer, str):
        by_letter = [index for index, letter in enumerate(letters) if letter.upper() == answer.strip().upper()]
        by_text = [index for index, letter in enumerate(letters) if options[letter] == answer]
        for fitting in (by_letter, by_text):
            if len(fitting) == 1:
                return fitting[0]
    raise DataError(f"key 'correct_answer': expected one of {', '.join(letters)}, found {answer!r}")


def _find_image(concept: Concept, image: str) -> str | None:
    """Find the photo that a question is about, among the concept's own.

    Paths may start with another root, as in published files (``./some-data/test/<concept>/0.png``): then concept and
    file name have to agree, and if that leaves several photos, the folder (``test``) as well.

    Raises:
        DataError: If no photo fits, or several do.
    """
    if not image:
        return None
    wanted = PurePosixPath(image)
    photos = [PurePosixPath(photo.path) for photo in (*concept.train, *concept.test)]
    if wanted in photos:
        return wanted.as_posix()
    same_name = [photo for photo in photos if photo.parts[-2:] == wanted.parts[-2:]]
    same_split = [photo for photo in same_name if photo.parts[0].rstrip("_") in {p.rstrip("_") for p in wanted.parts}]
    for fitting in (same_name, same_split):
        if len(fitting) == 1:
            return fitting[0].as_posix()
    raise DataError("the image is not a usable photo of the concept")
