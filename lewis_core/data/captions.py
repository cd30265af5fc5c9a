"""Captions that come with photos (MyVLM's ``captions.json``): kept as they are, and made into questions if wanted.

A question shows a photo and asks which of two captions is about it; the other one is of another photo of the same
thing, so it can only be answered by looking at the photo, not by knowing the thing.
"""

import re
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from lewis_core.data.json_files import load_json_object
from lewis_core.data.tree import SetAside
from lewis_core.records import Catalog, Concept, ImageRecord, Record, VqaItem
from lewis_core.seeding import stable_rng

CAPTION_FILES = ("captions.json", "captions_augmented.json")
"""Names of caption files in a concept's folder; the first that is there is read."""
QUESTION = "Which of these captions is about this photo of <sks>?"


class CaptionItem(Record):
    """A line of ``captions.jsonl``: what people wrote about a photo."""

    concept: str
    """Concept id."""
    image: str
    """Path of the photo, relative to the data root."""
    captions: tuple[str, ...]
    """As written; the thing may be called by its name."""


def read_captions(
    data_root: Path, files: Collection[str], catalog: Catalog
) -> tuple[list[CaptionItem], list[SetAside]]:
    """Read the caption files in the concepts' folders.

    Args:
        data_root: Folder of photos.
        files: Paths of files that are about images; those that hold captions are read.
        catalog: Concepts and usable images.

    Returns:
        Captions in the order of concepts and images; and the entries that cannot be used, named ``<file>: <image>``.

    Raises:
        CatalogError: If a file is not a JSON object.
    """
    items: list[CaptionItem] = []
    refused: list[SetAside] = []
    if not files:
        return items, refused
    for concept in catalog.concepts:
        photos: dict[str, list[ImageRecord]] = {}
        for image in sorted((*concept.train, *concept.test), key=lambda image: image.path):
            photos.setdefault(PurePosixPath(image.path).parent.as_posix(), []).append(image)
        for folder, images in sorted(photos.items()):
            name = next((name for name in CAPTION_FILES if f"{folder}/{name}" in files), None)
            if name is not None:
                content = load_json_object(data_root / folder / name)
                wrong = _find_mistakes(f"{folder}/{name}", content, {PurePosixPath(i.path).name for i in images})
                refused += wrong
                items += _take(concept, images, content)
    return items, refused


def _find_mistakes(file: str, content: Any, names: set[str]) -> list[SetAside]:
    """Entries without a usable photo, and those that are no lists of texts."""
    mistakes = []
    for name, texts in content.items():
        if not _are_texts(texts):
            mistakes.append(SetAside(path=f"{file}: {name}", reason=f"expected a list of texts, found {texts!r:.60}"))
        elif name not in names:
            mistakes.append(SetAside(path=f"{file}: {name}", reason="the image is missing or cannot be used"))
    return mistakes


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) and text.strip() for text in value)


def _take(concept: Concept, images: Sequence[ImageRecord], content: Any) -> list[CaptionItem]:
    named = [(image, content.get(PurePosixPath(image.path).name)) for image in images]
    return [
        CaptionItem(concept=concept.id, image=image.path, captions=tuple(texts))
        for image, texts in named
        if _are_texts(texts)
    ]


def make_questions(items: Sequence[CaptionItem], catalog: Catalog, seed: int) -> list[VqaItem]:
    """Make a question of every photo whose concept has another one with another caption.

    Args:
        items: Captions.
        catalog: The concepts' names, which the options must not give away.
        seed: Seed of the choice and of the order of options.

    Returns:
        Items with ids ``<concept>:caption-<n>``, in the order of ``items``.
    """
    concepts = {concept.id: concept for concept in catalog.concepts}
    texts = {item.image: hide_name(item.captions[0], concepts[item.concept]) for item in items}
    questions: list[VqaItem] = []
    for number, item in enumerate(items):
        others = sorted({texts[o.image] for o in items if o.concept == item.concept} - {texts[item.image]})
        if not others:
            continue
        rng = stable_rng(seed, "caption", item.concept, item.image)
        options = [texts[item.image], others[int(rng.integers(len(others)))]]
        correct = int(rng.integers(2))
        questions.append(
            VqaItem(
                id=f"{item.concept}:caption-{number}",
                concept=item.concept,
                image=item.image,
                question=QUESTION,
                options=tuple(options if correct == 0 else reversed(options)),
                correct=correct,
            )
        )
    return questions


def hide_name(caption: str, concept: Concept) -> str:
    """Call the thing "my mug" instead of by its name, in any spelling that captions use."""
    words = re.split(r"[_\-\s]+", concept.name)
    name = r"[_\-\s]".join(re.escape(word) for word in words)
    return re.sub(rf"(?<!\w)(?:<?sks>?|S\*|{name})(?!\w)", f"my {concept.category_word}", caption, flags=re.IGNORECASE)
