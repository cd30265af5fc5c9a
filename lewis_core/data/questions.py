"""Multiple-choice questions that come with a data set: the reference's ``visual-qa.json`` → normalised items.

The file maps a concept (``category/name``, or a name that is unique in the catalog) to images, and each image path to
one question or a list of them: ``{"question": …, "options": {"A": …, "B": …}, "correct_answer": "A"}``. The image path
``""`` asks the memory alone, and so does a mere number, as RAP's ``yollava-text-only-qa.json`` has in its place (with
``option`` for ``options``). The thing is called ``<sks>`` (``sks`` in other people's copies), or by its own name
in brackets, which becomes ``<sks>``, as names do not reach prompts. Entries that cannot be
used are named, never guessed at.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from lewis_core.data.layout import SetAside
from lewis_core.errors import DataError
from lewis_core.records import Catalog, Concept, VqaItem

_BARE_PLACEHOLDER = re.compile(r"(?<![\w<])sks(?![\w>])")


def read_questions(
    content: Mapping[str, Any], file: str, catalog: Catalog, unusable: Mapping[str, str] | None = None
) -> tuple[list[VqaItem], list[SetAside]]:
    """Read the content of a question file.

    Args:
        content: What the file holds.
        file: Its name, for messages.
        catalog: Concepts and usable images that questions may be about.
        unusable: Why images are not in the catalog, by path.

    Returns:
        Items, sorted by concept and then in the file's order, with ids ``<concept>:<n>``; and the entries that cannot
        be used, named ``<file>: <concept>: <image>`` with the reason.
    """
    found: dict[str, list[VqaItem]] = {}
    set_aside = []
    for key, image, entry in _iter_entries(content):
        try:
            concept = _find_concept(catalog, key)
            items = found.setdefault(concept.id, [])
            items.append(_parse_entry(f"{concept.id}:{len(items)}", concept, image, entry, unusable or {}))
        except DataError as error:
            set_aside.append(SetAside(path=f"{file}: {key}: {image}", reason=str(error)))
    return [item for _, items in sorted(found.items()) for item in items], set_aside


def _iter_entries(content: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Every (concept key, image path, question), in the file's order."""
    for key, images in content.items():
        if not isinstance(images, dict):
            yield key, "", images
            continue
        for image, questions in images.items():
            for entry in questions if isinstance(questions, list) else [questions]:
                yield key, "" if image.isdigit() else image, entry


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


def _parse_entry(item_id: str, concept: Concept, image: str, entry: Any, unusable: Mapping[str, str]) -> VqaItem:
    """Turn one question into a record.

    Raises:
        DataError: If a field is missing or of another kind, or the answer is not among the options.
    """
    if not isinstance(entry, dict):
        raise DataError(f"expected an object with question, options and correct_answer, found {entry!r:.80}")
    question, options = entry.get("question"), entry.get("options", entry.get("option"))
    if not isinstance(question, str) or not question.strip():
        raise DataError("key 'question': expected text")
    if not isinstance(options, dict) or len(options) < 2 or not all(_is_text(text) for text in options.values()):
        raise DataError("key 'options': expected an object of two or more letters with their texts")
    letters = sorted(options)
    return VqaItem(
        id=item_id,
        concept=concept.id,
        image=_find_image(concept, image, unusable),
        question=_restore_placeholder(question, concept),
        options=tuple(
            _restore_placeholder(options[letter], concept).replace("<sks>", f"my {concept.category_word}")
            for letter in letters
        ),
        correct=_find_answer(letters, options, entry.get("correct_answer")),
    )


def _restore_placeholder(text: str, concept: Concept) -> str:
    """Write the placeholder where the thing is called ``sks``, as in some published files, or ``<name>``."""
    return _BARE_PLACEHOLDER.sub("<sks>", text.replace(f"<{concept.name}>", "<sks>"))


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


def _find_image(concept: Concept, image: str, unusable: Mapping[str, str]) -> str | None:
    """Find the photo that a question is about, among the concept's own.

    Paths may start with another root, as in published files (``./some-data/test/<concept>/0.png``): then concept and
    file name have to agree, and if that leaves several photos, the folder (``test``) as well.

    Raises:
        DataError: If no photo fits, or several do; says whether it is missing or was set aside.
    """
    if not image:
        return None
    wanted = PurePosixPath(image)
    photos = [PurePosixPath(photo.path) for photo in (*concept.train, *concept.test)]
    fitting = _best_match(wanted, photos)
    if len(fitting) == 1:
        return fitting[0].as_posix()
    if fitting:
        raise DataError(f"the image could be any of {', '.join(photo.as_posix() for photo in fitting)}")
    aside = _best_match(wanted, [PurePosixPath(path) for path in unusable])
    if len(aside) == 1:
        raise DataError(f"the image was set aside: {unusable[aside[0].as_posix()]}")
    raise DataError(f"the image is missing: not among the {len(photos)} usable photos of {concept.id}")


def _best_match(wanted: PurePosixPath, photos: Sequence[PurePosixPath]) -> list[PurePosixPath]:
    """Photos that a path may mean: the same path, else folder and name, and then the split as well."""
    if wanted in photos:
        return [wanted]
    same_name = [photo for photo in photos if photo.parts[-2:] == wanted.parts[-2:]]
    if len(same_name) <= 1:
        return same_name
    splits = {part.rstrip("_") for part in wanted.parts}
    same_split = [photo for photo in same_name if photo.parts[0].rstrip("_") in splits]
    return same_split or same_name
