"""Questions about my thing, answered with its description as the memory.

Published sets are broken in ways that this evaluation shows: where A is right in most items, the always-A control says
so; where a question can be guessed without any memory, the blind control says so. Options are drawn and shuffled by
seed, the same for every speaker.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lewis_core.artifacts import ArtifactRef
from lewis_core.config.base import ModelRef
from lewis_core.config.evaluation import Control, Reading, StatisticsConfig, VqaConfig, asked_controls
from lewis_core.errors import ArtifactError, EvaluationError
from lewis_core.evaluation import asking, io
from lewis_core.evaluation.asking import Ask
from lewis_core.evaluation.controls import (
    BLIND,
    IMAGE_AND_TEXT,
    IMAGE_ONLY,
    NO_IMAGE,
    TEXT_ONLY,
    WRONG_DESCRIPTION,
    always_a,
    draw_others,
    majority_text,
)
from lewis_core.evaluation.io import ASKED_ONLY, Subject
from lewis_core.evaluation.records import Metric, Prediction
from lewis_core.evaluation.statistics import Measure, mean_measure, summarise
from lewis_core.evaluation.verdict import by_mode
from lewis_core.models.protocol import AnsweringModel
from lewis_core.prompts import LETTERS, PromptSet, prompt_set
from lewis_core.records import JsonObject, VqaItem, load_jsonl
from lewis_core.reporting import NullReporter, Reporter
from lewis_core.seeding import stable_rng

QUESTIONS = "questions.jsonl"
PLACEHOLDER = "<sks>"
WORDS, PHOTO, BOTH = "description", "image", "both"
USUAL_CONTROLS: tuple[Control, ...] = ("blind",)
KNOWN_CONTROLS: tuple[Control, ...] = (
    *USUAL_CONTROLS,
    "no-image",
    "no-description",
    "wrong-description",
    "image-only",
    "image-and-text",
    "text-only",
)
SHOWN_IN = {
    BLIND: (),
    IMAGE_ONLY: (PHOTO,),
    IMAGE_AND_TEXT: (PHOTO, WORDS),
    TEXT_ONLY: (WORDS,),
    WORDS: (WORDS,),
    PHOTO: (PHOTO,),
    BOTH: (PHOTO, WORDS),
}
"""What is shown in each mode; the arms ``no_…`` and ``wrong_description`` begin with what the settings show."""


class PutQuestion(NamedTuple):
    """A question as it is put: options drawn and shuffled, with or without memory."""

    item: VqaItem
    subject: Subject
    mode: str
    options: tuple[str, ...]
    expected: int
    shown: tuple[str, ...]
    """Of ``description`` and ``image``."""
    other: Subject | None = None
    """Whose words are put in the place of the concept's own, in the arm ``wrong_description``."""

    @property
    def failure(self) -> str | None:
        """Why it cannot be asked."""
        return (self.other or self.subject).failure if WORDS in self.shown else None

    @property
    def image(self) -> str | None:
        """Photo beside the question: its own, or the reference photo where a question has none."""
        if PHOTO not in self.shown:
            return None
        return self.item.image or self.subject.entry.reference.path

    def prompt(self, prompts: PromptSet) -> str:
        """Write the question; the placeholder becomes "my mug", never a name."""
        word = self.subject.entry.category_word
        description = (self.other or self.subject).entry.text if WORDS in self.shown else None
        return prompts.vqa(word, description, self.item.question.replace(PLACEHOLDER, f"my {word}"), self.options)

    def prediction(self) -> Prediction:
        """The question's record before it is answered."""
        return Prediction(
            item=f"{self.mode}:{self.item.id}",
            concept=self.subject.id,
            category=self.subject.concept.category,
            image=self.item.image,
            options=self.options,
            expected=self.expected,
            answered=None,
            tags={"mode": self.mode, "question": self.item.question},
            error=self.failure,
        )


def evaluate_vqa(
    database: ArtifactRef,
    catalog: ArtifactRef,
    answering: ModelRef,
    output_dir: Path,
    config: VqaConfig,
    statistics: StatisticsConfig,
    service_url: str,
    work_dir: Path,
    reporter: Reporter,
) -> JsonObject:
    """Ask the data set's questions.

    Args:
        database: Artifact of ``describe-concepts``.
        catalog: Artifact of ``build-catalog``; holds ``questions.jsonl``.
        answering: The answering model; the service at ``service_url`` runs it.
        output_dir: Receives ``predictions.jsonl`` and ``metrics.json``.
        config: What is shown, options, controls, seed.
        statistics: Intervals.
        service_url: Address of the model service.
        work_dir: Keeps answers until all are there.
        reporter: Receives progress and metrics.

    Returns:
        Counts and numbers.

    Raises:
        EvaluationError: If there are no questions about the described concepts.
        ListenerError: If the service does not answer.
    """
    speaker, subjects = io.load_subjects(database, catalog)
    questions = build_questions(load_questions(catalog), subjects, config)
    with asking.connect(service_url, work_dir) as model:
        predictions = answer_questions(questions, model, prompt_set(answering.prompts), reporter, config)
    metrics = aggregate(predictions, statistics)
    reporter.log_metrics(io.numbers(metrics))
    put, blind = split_arms(predictions)
    return io.save_evaluation(output_dir, "vqa", speaker, "listener", put, metrics, statistics, blind)


def load_questions(catalog: ArtifactRef) -> list[VqaItem]:
    """Read the questions that came with the photos.

    Raises:
        EvaluationError: If there are none.
    """
    try:
        path = catalog.file(QUESTIONS)
    except ArtifactError as error:
        raise EvaluationError(
            "the data set has no questions: expected visual-qa.json in the data root when the catalog was built; "
            "add it and run the flow again"
        ) from error
    return load_jsonl(path, VqaItem)


def build_questions(items: Sequence[VqaItem], subjects: Sequence[Subject], config: VqaConfig) -> list[PutQuestion]:
    """Choose questions about described concepts, draw and shuffle their options, add the blind arm.

    Raises:
        EvaluationError: If no question is about a described concept, or none shows a photo where one is wanted.
    """
    known = {subject.id: subject for subject in subjects}
    by_concept: dict[str, list[VqaItem]] = {}
    for item in usable_items(items, known, config):
        by_concept.setdefault(item.concept, []).append(item)
    questions = [
        _put(item, known[concept], config)
        for concept, asked in sorted(by_concept.items())
        for item in _draw_items(concept, asked, config)
    ]
    if not questions:
        raise EvaluationError(
            f"none of {len(items)} questions can be asked: expected questions about the {len(known)} described "
            f"concepts{'' if config.show == 'description' else ' with a photo each'}"
        )
    arms = asked_controls(config.controls, USUAL_CONTROLS, KNOWN_CONTROLS)
    asked = [_in_arm(question, arm, subjects, config.seed) for arm in arms for question in questions]
    return [*questions, *(question for question in asked if question is not None)]


def _in_arm(question: PutQuestion, arm: str, subjects: Sequence[Subject], seed: int) -> PutQuestion | None:
    """Ask a question in the way of a control arm; ``None`` if there is no other concept's description."""
    if arm in SHOWN_IN:
        return question._replace(mode=arm, shown=SHOWN_IN[arm])
    if arm == WRONG_DESCRIPTION:
        drawn = draw_others(subjects, [question.subject], 1, seed, "vqa-wrong", question.item.id)
        return question._replace(mode=arm, other=drawn[0]) if drawn else None
    left_out = PHOTO if arm == NO_IMAGE else WORDS
    return question._replace(mode=arm, shown=tuple(part for part in question.shown if part != left_out))


def usable_items(items: Sequence[VqaItem], concepts: Collection[str], config: VqaConfig) -> list[VqaItem]:
    """Leave out questions about other concepts, and those without a photo where one is shown."""
    return [
        item for item in items if item.concept in concepts and (item.image is not None or config.show == "description")
    ]


def _draw_items(concept: str, items: Sequence[VqaItem], config: VqaConfig) -> list[VqaItem]:
    """Draw questions of a concept; all of them when there are few enough."""
    count = config.questions_per_concept
    if count is None or count >= len(items):
        return list(items)
    chosen = stable_rng(config.seed, "vqa-items", concept).choice(len(items), size=count, replace=False)
    return [items[index] for index in sorted(int(i) for i in chosen)]


def _put(item: VqaItem, subject: Subject, config: VqaConfig) -> PutQuestion:
    """Draw wrong options up to the number wanted, and shuffle all.

    Raises:
        EvaluationError: If the item names an option that it does not have.
    """
    if item.correct >= len(item.options):
        raise EvaluationError(f"question {item.id}: correct = {item.correct}, but it has {len(item.options)} options")
    rng = stable_rng(config.seed, "vqa-options", item.id)
    wrong = [index for index in range(len(item.options)) if index != item.correct]
    drawn = [wrong[int(i)] for i in rng.permutation(len(wrong))][: config.num_options - 1]
    shown = [item.correct, *drawn]
    order = [int(i) for i in rng.permutation(len(shown))]
    options = tuple(item.options[shown[position]] for position in order)
    return PutQuestion(item, subject, config.show, options, order.index(0), SHOWN_IN[config.show])


def answer_questions(
    questions: Sequence[PutQuestion],
    model: AnsweringModel,
    prompts: PromptSet,
    reporter: Reporter | None = None,
    reading: Reading = asking.LOGITS,
) -> list[Prediction]:
    """Ask for letters; questions whose memory is missing fail."""
    asks = [
        Ask(question.image, question.prompt(prompts), tuple(LETTERS[: len(question.options)]))
        for question in questions
        if question.failure is None
    ]
    replies = iter(asking.ask_all(model, asks, reporter or NullReporter(), reading))
    predictions = []
    for question in questions:
        prediction = question.prediction()
        if prediction.error is None:
            prediction = asking.record_answer(prediction, next(replies), question.options)
        predictions.append(prediction)
    return predictions


def split_arms(predictions: Sequence[Prediction]) -> tuple[list[Prediction], list[Prediction]]:
    """Separate the questions proper from the control arms."""
    put = [prediction for prediction in predictions if prediction.tags["mode"] in {WORDS, PHOTO, BOTH}]
    return put, [prediction for prediction in predictions if prediction.tags["mode"] not in {WORDS, PHOTO, BOTH}]


def accuracy(predictions: Sequence[Prediction]) -> Measure:
    """Share of right answers; invalid ones, and questions without a description, are wrong."""
    return mean_measure([(prediction.concept, float(prediction.is_correct)) for prediction in predictions])


def aggregate(predictions: Sequence[Prediction], config: StatisticsConfig) -> tuple[Metric, ...]:
    """Turn answers into numbers with intervals."""
    put, blind = split_arms(predictions)
    asked = [prediction for prediction in put if prediction.error is None]
    measures = {
        "accuracy": accuracy(put),
        "accuracy_described": accuracy(asked),
        "invalid_rate": mean_measure([(p.concept, float(p.answered is None)) for p in asked]),
        "control_always_a": always_a(put),
        "control_majority": majority_text(put),
    }
    measures |= {
        f"control_{mode}_accuracy": accuracy([p for p in arm if p.error is None])
        for mode, arm in by_mode(blind).items()
    }
    chance = sum(1 / len(p.options) for p in put) / max(len(put), 1)
    notes: Mapping[str, str] = {
        "accuracy": f"chance {chance:.2f}; {len(put) - len(asked)} could not be asked and count as wrong",
        "accuracy_described": ASKED_ONLY,
        "control_always_a": "what answering A every time would score",
        "control_majority": "what the answer that is right most often for other concepts would score",
        "control_no_image_accuracy": "the same questions without photo",
        "control_no_description_accuracy": "the same questions without description",
        "control_wrong_description_accuracy": "the same questions with another concept's description",
        "control_image_only_accuracy": "a photo instead of the description; the reference photo if a question has none",
        "control_image_and_text_accuracy": "photo and description",
        "control_text_only_accuracy": "the description alone",
        "control_blind_accuracy": "the same questions without description and photo",
    }
    return summarise(measures, config, notes)
