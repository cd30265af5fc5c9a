"""Would the photos themselves have helped? Wrong answers from descriptions, asked again with pictures.

The query photo stands on top of a picture, the reference photos of the options below it, lettered in the same order;
the model says which of them shows the same thing. Only the items that were wrong would flatter the photos (any second
try gets some right), so as many right ones are asked again too. Items that fail stay in the denominator.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lewis_core.artifacts import ArtifactRef
from lewis_core.config.analyses import VisualConfig
from lewis_core.config.base import ModelRef, Runtime
from lewis_core.errors import EvaluationError, ImageError
from lewis_core.evaluation import asking
from lewis_core.evaluation.analyses.load import load_evaluations, mode_of
from lewis_core.evaluation.records import EvaluationResult, Prediction
from lewis_core.listener.schemas import ChoiceItem, Question
from lewis_core.models.protocol import AnsweringModel
from lewis_core.prompts import LETTERS
from lewis_core.prompts.visual import visual_prompt
from lewis_core.records import Database, DatabaseEntry, JsonObject, Record, load_record, save_record
from lewis_core.reporting import Reporter, track
from lewis_core.seeding import stable_rng

FILE, PICTURES = "visual_comparison.json", "pictures"
GAP = 8
"""Pixels between photos."""
BADGE = 40
"""Height of a letter's badge, in pixels, in photos of 512."""


class Again(Record):
    """One item asked again."""

    item: str
    concept: str
    picture: str
    """File below the artifact."""
    expected: str
    """Concept of the right option."""
    before: str
    """What was answered from the descriptions."""
    after: str | None
    """What was answered from the photos; ``None`` for an invalid answer or a failure."""
    error: str | None = None


class VisualComparison(Record):
    """All items asked again; ``visual_comparison.json``."""

    speaker: str
    wrong_before: int
    """Wrong answers that there were; at most ``max_items`` of them are asked again."""
    asked: int
    """Wrong answers asked again."""
    changed: int
    changed_to_correct: int
    changed_to_wrong: int
    """From one wrong option to another."""
    stayed_wrong: int
    """The same wrong option again."""
    failed: int
    """Invalid answers and failures."""
    accuracy_visual: float | None
    """``changed_to_correct / asked``."""
    control_asked: int
    """Right answers asked again."""
    control_stayed_correct: int
    control_accuracy: float | None
    items: tuple[Again, ...]
    control_items: tuple[Again, ...]


def compare_visually(
    identification: ArtifactRef,
    database: ArtifactRef,
    answering: ModelRef,
    output_dir: Path,
    config: VisualConfig,
    data_root: Path,
    runtime: Runtime,
    reporter: Reporter,
) -> JsonObject:
    """Ask the items of an identification again that were wrong with the truth among the options.

    Args:
        identification: Artifact of ``evaluate-identification``.
        database: Artifact of ``describe-concepts`` that it was answered from; names the reference photos.
        answering: The model that answers.
        output_dir: Receives ``visual_comparison.json`` and the pictures.
        config: How many, and how large.
        data_root: Folder that image paths are relative to.
        runtime: Device, batch size.
        reporter: Receives progress.

    Returns:
        Counts.

    Raises:
        EvaluationError: If it is no identification, or of another database.
        ModelError: If the model cannot be loaded.
    """
    [evaluation] = load_evaluations([identification])
    check(evaluation.result, database)
    entries = {entry.concept: entry for entry in load_record(database.file("database.json"), Database).entries}
    right, wrong = choose_items(evaluation.predictions, config)
    total = sum(is_wrong(p) for p in _comparable(evaluation.predictions))
    (output_dir / PICTURES).mkdir()
    from lewis_core.models.vlm import open_model

    model = open_model(answering, runtime, output_dir)
    items, control = (
        ask_again(model, some, entries, output_dir, data_root, config.height, reporter) for some in (wrong, right)
    )
    found = sum_up(evaluation.result.speaker, total, items, control)
    save_record(output_dir / FILE, found)
    return found.model_dump(exclude={"items", "control_items"})


def check(result: EvaluationResult, database: ArtifactRef) -> None:
    """Check that an evaluation is an identification from a database.

    Raises:
        EvaluationError: If it is not.
    """
    speaker = load_record(database.file("database.json"), Database).speaker
    if result.evaluation != "identification" or result.speaker != speaker:
        raise EvaluationError(
            f"expected the identification from {speaker}'s descriptions, found {result.evaluation} of {result.speaker}"
        )


def is_wrong(prediction: Prediction) -> bool:
    """Whether a valid answer is wrong."""
    return prediction.answered != prediction.expected


def _comparable(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Letter questions with the truth among their options and a valid answer."""
    return [
        p
        for p in predictions
        if mode_of(p) == "oracle" and p.error is None and p.answered is not None and p.expected is not None and p.image
    ]


def choose_items(predictions: Sequence[Prediction], config: VisualConfig) -> tuple[list[Prediction], list[Prediction]]:
    """Draw right and wrong answers to be asked again, as many right ones as wrong ones where there are."""
    wrong = _draw([p for p in _comparable(predictions) if is_wrong(p)], config.max_items, config.seed)
    right = _draw([p for p in _comparable(predictions) if not is_wrong(p)], len(wrong), config.seed)
    return right, wrong


def _draw(predictions: Sequence[Prediction], count: int, seed: int) -> list[Prediction]:
    if len(predictions) <= count:
        return list(predictions)
    chosen = stable_rng(seed, "visual").choice(len(predictions), size=count, replace=False)
    return [predictions[index] for index in sorted(int(i) for i in chosen)]


def ask_again(
    model: AnsweringModel,
    predictions: Sequence[Prediction],
    entries: Mapping[str, DatabaseEntry],
    output_dir: Path,
    data_root: Path,
    height: int,
    reporter: Reporter,
) -> list[Again]:
    """Draw the pictures and ask about them.

    Args:
        model: Who answers; image references lead below ``output_dir``.
        predictions: Items of an identification.
        entries: A database's entries by concept.
        output_dir: Receives the pictures.
        data_root: Folder that image paths are relative to.
        height: Of each photo, in pixels.
        reporter: Receives progress.

    Raises:
        EvaluationError: If an option is not in the database.
    """
    again = []
    for number, one in enumerate(track(predictions, len(predictions), "questions", reporter)):
        if missing := [option for option in one.options if option not in entries]:
            raise EvaluationError(f"{one.item}: the database does not describe {missing[0]!r}")
        name = f"{PICTURES}/{'wrong' if is_wrong(one) else 'right'}-{number:04d}.jpg"
        references = [data_root / entries[option].reference.path for option in one.options]
        record = Again(
            item=one.item,
            concept=one.concept,
            picture=name,
            expected=one.options[one.expected or 0],
            before=one.options[one.answered or 0],
            after=None,
        )
        try:
            draw_picture(data_root / (one.image or ""), references, height).save(output_dir / name, quality=90)
            prompt = visual_prompt(entries[one.concept].category_word, len(one.options))
            question = Question(prompt=prompt, choices=tuple(LETTERS[: len(one.options)]))
            [[answer]] = model.choose([ChoiceItem(image=name, questions=(question,))])
        except (OSError, ImageError) as error:
            again.append(record.model_copy(update={"error": str(error)}))
            continue
        chosen = asking.read_answer(answer, one.expected).answered
        again.append(record.model_copy(update={"after": None if chosen is None else one.options[chosen]}))
    return again


def draw_picture(query: Path, references: Sequence[Path], height: int) -> Image.Image:
    """Draw the query photo above the lettered reference photos.

    Args:
        query: The photo that is asked about.
        references: Photos of the options, in their order.
        height: Height of each photo, in pixels; widths follow.
    """
    top = _open(query, height)
    photos = [_open(path, height) for path in references]
    width = max(top.width, sum(photo.width for photo in photos) + GAP * (len(photos) - 1))
    picture = Image.new("RGB", (width, 2 * height + GAP), "white")
    picture.paste(top, ((width - top.width) // 2, 0))
    left = 0
    for letter, photo in zip(LETTERS, photos, strict=False):
        picture.paste(photo, (left, height + GAP))
        _badge(picture, letter, left, height + GAP, max(14, height * BADGE // 512))
        left += photo.width + GAP
    return picture


def _open(path: Path, height: int) -> Image.Image:
    from PIL import ImageOps

    with Image.open(path) as photo:
        upright = ImageOps.exif_transpose(photo).convert("RGB")
    return upright.resize((max(1, round(upright.width * height / upright.height)), height))


def _badge(picture: Image.Image, letter: str, left: int, top: int, size: int) -> None:
    """Write a white letter on black into a photo's upper left corner."""
    draw = ImageDraw.Draw(picture)
    draw.rectangle((left, top, left + size, top + size), fill="black")
    font = ImageFont.load_default(size * 0.8)
    draw.text((left + size / 2, top + size / 2), letter, fill="white", font=font, anchor="mm")


def sum_up(speaker: str, wrong_before: int, items: Sequence[Again], control: Sequence[Again]) -> VisualComparison:
    """Count what asking again has changed."""
    corrected = sum(one.after == one.expected for one in items)
    stayed = sum(one.after == one.before for one in items)
    failed = sum(one.after is None for one in items)
    kept = sum(one.after == one.expected for one in control)
    return VisualComparison(
        speaker=speaker,
        wrong_before=wrong_before,
        asked=len(items),
        changed=len(items) - stayed - failed,
        changed_to_correct=corrected,
        changed_to_wrong=len(items) - stayed - failed - corrected,
        stayed_wrong=stayed,
        failed=failed,
        accuracy_visual=corrected / len(items) if items else None,
        control_asked=len(control),
        control_stayed_correct=kept,
        control_accuracy=kept / len(control) if control else None,
        items=tuple(items),
        control_items=tuple(control),
    )
