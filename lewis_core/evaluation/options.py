"""Which descriptions are offered for a photo in identification: retrieved, sure to hold the truth, or controls.

Options are shuffled by seed and photo alone, so neither the retriever's rank nor the truth decides a letter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lewis_core.config.evaluation import Control, IdentificationConfig, asked_controls
from lewis_core.errors import EvaluationError
from lewis_core.evaluation.controls import (
    IMAGE_AND_TEXT,
    IMAGE_ONLY,
    NO_DESCRIPTION,
    NO_IMAGE,
    TEXT_ONLY,
    WRONG_DESCRIPTION,
    draw_others,
)
from lewis_core.evaluation.io import Subject, without_owners
from lewis_core.evaluation.metrics import Floats
from lewis_core.evaluation.records import Prediction
from lewis_core.records import ImageRecord
from lewis_core.retrieval.hybrid import hybrid_scores, retrieve, similarities
from lewis_core.retrieval.vectors import Matrix
from lewis_core.seeding import stable_rng

RETRIEVER_ARMS = (IMAGE_ONLY, IMAGE_AND_TEXT, TEXT_ONLY)
"""Control arms that the retriever answers without the model: the option that it likes best."""
CONTROLS = (NO_DESCRIPTION, WRONG_DESCRIPTION, NO_IMAGE, *RETRIEVER_ARMS)
"""Modes that are control arms."""
USUAL_CONTROLS: tuple[Control, ...] = ("no-description", "wrong-description")
KNOWN_CONTROLS: tuple[Control, ...] = (*USUAL_CONTROLS, "no-image", "image-only", "image-and-text", "text-only")


@dataclass(frozen=True)
class Index:
    """Embeddings by image digest and by concept id; all L2-normalised, shapes ``(N, D)`` and ``(C, D)``."""

    images: Matrix
    image_rows: Mapping[str, int]
    texts: Matrix
    text_rows: Mapping[str, int]

    def image_row(self, photo: ImageRecord) -> int:
        """Row of a photo.

        Raises:
            EvaluationError: If it was not embedded.
        """
        if photo.sha256 not in self.image_rows:
            raise EvaluationError(f"{photo.path} has no embedding; embed the images of this very catalog")
        return self.image_rows[photo.sha256]

    def text_row(self, concept: str) -> int:
        """Row of a concept's description.

        Raises:
            EvaluationError: If it was not embedded.
        """
        if concept not in self.text_rows:
            raise EvaluationError(f"the text index does not hold {concept}; index this very database")
        return self.text_rows[concept]


class Query(NamedTuple):
    """One photo, and one way of asking whose thing it shows."""

    subject: Subject
    photo: ImageRecord
    mode: str
    options: tuple[Subject, ...]
    texts: tuple[str, ...]
    similarities: tuple[float, ...] = ()
    """How well the retriever likes each option, in the arms that it answers."""

    @property
    def image(self) -> str | None:
        """Photo beside the question."""
        return None if self.mode == NO_IMAGE else self.photo.path

    @property
    def expected(self) -> int | None:
        """Position of the truth among the options, or ``None``."""
        ids = [option.id for option in self.options]
        return ids.index(self.subject.id) if self.subject.id in ids else None

    @property
    def failure(self) -> str | None:
        """Why it cannot be asked; controls do not need the concept's own description."""
        return None if self.mode in {NO_DESCRIPTION, WRONG_DESCRIPTION, IMAGE_ONLY} else self.subject.failure

    def prediction(self) -> Prediction:
        """The query's record before it is answered."""
        return Prediction(
            item=f"{self.mode}:{self.photo.path}@{self.subject.id}",
            concept=self.subject.id,
            category=self.subject.concept.category,
            image=self.photo.path,
            options=tuple(option.id for option in self.options),
            expected=self.expected,
            answered=None,
            tags={"mode": self.mode},
            error=self.failure,
        )


def build_queries(
    subject: Subject, photo: ImageRecord, subjects: Sequence[Subject], index: Index, config: IdentificationConfig
) -> list[Query]:
    """Choose the options of one photo, for each mode and control; no other concept with the same picture is one."""
    subjects = without_owners(subjects, photo, subject)
    pool = sorted(
        (s for s in subjects if config.pool == "all" or s.concept.category == subject.concept.category),
        key=lambda s: s.id,
    )
    hits = retrieve(
        index.images[index.image_row(photo)],
        index.images[[index.image_row(other.entry.reference) for other in pool]],
        index.texts[[index.text_row(other.id) for other in pool]],
        config.image_weight,
        config.num_options,
        config.scaling,
        config.fusion,
    )
    retrieved = [pool[hit.index] for hit in hits]
    found = subject.id in {option.id for option in retrieved}
    oracle = retrieved if found else [*retrieved[: config.num_options - 1], subject]
    queries = []
    for mode, options in (("retrieval", retrieved), ("oracle", oracle)):
        if mode in config.modes and len(options) > 1:
            shuffled = shuffle_options(options, photo, config.seed)
            queries.append(Query(subject, photo, mode, shuffled, tuple(option.option_text for option in shuffled)))
    arms = asked_controls(config.controls, USUAL_CONTROLS, KNOWN_CONTROLS)
    if arms and len(oracle) > 1:
        shown = shuffle_options(oracle, photo, config.seed)
        asked = [_control_query(arm, subject, photo, shown, subjects, index, config) for arm in arms]
        queries += [query for query in asked if query is not None]
    return queries


def shuffle_options(options: Sequence[Subject], photo: ImageRecord, seed: int) -> tuple[Subject, ...]:
    """Order options by seed and photo alone, so that neither retrieval rank nor the truth decides a letter."""
    ordered = sorted(options, key=lambda option: option.id)
    order = stable_rng(seed, "identification-order", photo.sha256, *(s.id for s in ordered)).permutation(len(ordered))
    return tuple(ordered[int(position)] for position in order)


def _control_query(
    arm: str,
    subject: Subject,
    photo: ImageRecord,
    options: tuple[Subject, ...],
    subjects: Sequence[Subject],
    index: Index,
    config: IdentificationConfig,
) -> Query | None:
    """Ask the oracle question in the way of a control arm; ``None`` if there are not enough other descriptions."""
    texts = tuple(option.option_text for option in options)
    if arm == NO_DESCRIPTION:
        texts = ("",) * len(options)
    elif arm == WRONG_DESCRIPTION:
        without = [subject, *options]
        drawn = draw_others(subjects, without, len(options), config.seed, "identification-wrong", photo.sha256)
        if len(drawn) < len(options):
            return None
        texts = tuple(other.entry.text for other in drawn)
    elif arm in RETRIEVER_ARMS:
        return Query(subject, photo, arm, options, texts, _similarities(arm, photo, options, index, config))
    return Query(subject, photo, arm, options, texts)


def _similarities(
    arm: str, photo: ImageRecord, options: Sequence[Subject], index: Index, config: IdentificationConfig
) -> tuple[float, ...]:
    """How much the retriever likes each option by its reference photo, its text, or both."""
    query = index.images[index.image_row(photo)]
    images = similarities(query, index.images[[index.image_row(option.entry.reference) for option in options]])
    texts = similarities(query, index.texts[[index.text_row(option.id) for option in options]])
    scores = {IMAGE_ONLY: images, TEXT_ONLY: texts, IMAGE_AND_TEXT: _mixed(images, texts, config)}
    return tuple(float(score) for score in scores[arm])


def _mixed(images: Floats, texts: Floats, config: IdentificationConfig) -> Floats:
    return hybrid_scores(images, texts, config.image_weight, config.scaling, config.fusion)
