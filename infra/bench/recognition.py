"""Recognition of all pairs: every photo asked about with every description, through the evaluation's own code.

A set of 329 concepts and 3,000 photos makes 987,000 pairs; what is measured on some of the photos is scaled to that.
The model has random weights and reads bytes: about 50 tokens a question, as many as a real tokenizer makes of "My
mug: … Is my mug in the image? Answer yes or no." with a description of twenty-five words.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infra.bench import world
from infra.bench.listener import Baselines, add_floors, open_facade, serving, unique_groups
from infra.bench.recorder import Recorder
from lewis_core.config.evaluation import RecognitionConfig
from lewis_core.evaluation import recognition
from lewis_core.evaluation.io import build_subjects
from lewis_core.models.protocol import AnsweringModel
from lewis_core.prompts import prompt_set
from lewis_core.records import Catalog, Concept, Database, DatabaseEntry, Description, ImageRecord
from lewis_core.testing import FakeModel

PART = "recognition"
SET_CONCEPTS, SET_PHOTOS = 329, 3000
"""The set that times are scaled to: PerVA."""
TEXT = 37
"""Characters of a description, which make about 50 tokens a question with the prompt below."""
PROMPTS = dataclasses.replace(prompt_set("concise"), name="bench", recognition_template="{description} Yes or no?")


def make_subjects(photos: list[str], concepts: int) -> Any:
    """Concepts with a description each, of which the first ones have a photo to be asked about."""
    records = [ImageRecord(path=name, sha256=name, width=28, height=28) for name in photos]
    known, entries = [], []
    for number in range(concepts):
        reference = ImageRecord(path=f"reference-{number}.jpg", sha256=f"reference-{number}", width=28, height=28)
        shown = (records[number],) if number < len(records) else ()
        name = f"c{number:03d}"
        known.append(Concept(category="mug", category_word="mug", name=name, train=(reference,), test=shown))
        text = Description(thinking="", coarse="", detailed=world.description(number, TEXT))
        entries.append(
            DatabaseEntry(
                concept=f"mug/{name}",
                category="mug",
                category_word="mug",
                reference=reference,
                completion="",
                description=text,
            )
        )
    return build_subjects(Database(speaker="bench", entries=tuple(entries)), Catalog(concepts=tuple(known)))


def run(recorder: Recorder, model: Any, folder: Path, options: Any) -> None:
    """All arms, for each number of visual tokens.

    Args:
        recorder: Takes the times.
        model: The answering model, of random weights.
        folder: Where photos may be written.
        options: ``visual_tokens``, ``photos``, ``concepts``.
    """
    for tokens in options.visual_tokens:
        _run(recorder, model, folder, options, tokens)


def _run(recorder: Recorder, model: Any, folder: Path, options: Any, tokens: int) -> None:
    processor = world.build_processor(tokens)
    photos = world.write_photos(folder, options.photos, tokens)
    facade = open_facade(model, processor, folder)
    subjects = make_subjects(photos, options.concepts)
    config = RecognitionConfig(easy_negatives="all", controls=False)
    few = make_subjects(photos[:2], options.concepts)
    pairs = options.photos * options.concepts
    questions = [(pair.photo.path, pair.prompt(PROMPTS)) for pair in recognition.build_pairs(subjects, config)]
    groups = unique_groups(facade, questions)
    suffixes = [len(suffix) for group in groups for suffix in group.suffixes]
    facts = {"visual_tokens": tokens, "tokens_per_question": round(sum(suffixes) / len(suffixes), 1)}

    def ask(answering: AnsweringModel, who: Any = subjects) -> Callable[[], None]:
        def go() -> None:
            found = recognition.recognise(who, answering, PROMPTS, config)
            if any(p.error for p in found) or len(found) != len(who) * sum(bool(s.photos) for s in who):
                raise RuntimeError("not every pair was answered")

        return go

    with serving(facade) as client:
        ask(client, few)()
        seconds = recorder.measure(
            PART, "all pairs, over HTTP", ask(client), repeats=1, warmup=0, units=pairs, unit="pairs", **facts
        )
    recorder.measure(
        PART, "all pairs, in process", ask(facade), repeats=1, warmup=0, units=pairs, unit="pairs", **facts
    )
    recorder.measure(
        PART, "questions and records alone, no model", ask(FakeModel()), units=pairs, unit="pairs", repeats=1, **facts
    )
    add_floors(recorder, model, groups, tokens, part=PART)
    some = [(photo, question) for photo, question in questions[:2]]
    alone = recorder.measure(
        PART,
        "reference style (a generation a pair)",
        lambda: Baselines(model, processor, folder).one_by_one(some, clean=False),
        repeats=1,
        units=len(some),
        unit="pairs",
        scale=pairs / len(some),
        **facts,
    )
    whole = SET_CONCEPTS * SET_PHOTOS
    for arm, took, share in (("over HTTP", seconds, pairs), ("reference style", alone, len(some))):
        if took is not None:
            recorder.note(
                f"recognition: {SET_CONCEPTS} concepts and {SET_PHOTOS} photos, {whole} pairs, {arm}",
                visual_tokens=tokens,
                minutes=round(took / share * whole / 60, 1),
            )
