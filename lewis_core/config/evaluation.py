"""Settings of description generation, the evaluations and the report."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from lewis_core.config.base import FrozenConfig, ModelRef

RESERVED_SPEAKERS = ("base", "trained", "report", "speakers", "computed")
"""Names with another meaning in results: the model a run starts from, the one it trains, and parts of its last line."""
Control = Literal[
    "always-A",
    "majority",
    "blind",
    "no-image",
    "no-description",
    "wrong-description",
    "image-only",
    "image-and-text",
    "text-only",
]
"""Arms that show what a number is worth. The first two are computed from the answers and always reported; the others
are asked. Each evaluation has those that make sense for it (see ``infra/docs/evaluation.md``)."""
Controls = bool | tuple[Control, ...]
"""``True``: the evaluation's usual ones; ``False``: none that cost anything; or a list of names."""


def asked_controls(controls: Controls, usual: tuple[Control, ...], known: tuple[Control, ...]) -> tuple[str, ...]:
    """Names of the arms to ask, as they are written in tags: ``wrong-description`` becomes ``wrong_description``.

    Args:
        controls: The setting.
        usual: What ``True`` stands for.
        known: What the evaluation has; other names are for other evaluations.
    """
    chosen = usual if controls is True else controls or ()
    return tuple(name.replace("-", "_") for name in known if name in chosen)


class DescribeConfig(FrozenConfig):
    """How a speaker describes each held-out concept's reference photo."""

    max_new_tokens: int = Field(default=128, ge=8)
    """Longest completion, in tokens."""
    temperature: float = Field(default=0.0, ge=0, le=10)
    """0 is greedy decoding."""
    reference: Literal["first", "random"] = "first"
    """Which training photo of a concept is its reference."""
    concepts: Literal["held-out", "training", "all"] = "held-out"
    """Which concepts are described."""
    seed: int = 0
    """Seed of the reference choice and of sampling."""


class GameEvaluationConfig(FrozenConfig):
    """The game itself on held-out concepts: does a listener find the thing from the words?"""

    num_candidates: int = Field(default=6, ge=2, le=64)
    """The target and its nearest look-alikes."""
    rounds_per_concept: int = Field(default=2, ge=1)
    """Rounds per concept, each with another target photo."""
    seed: int = 0
    """Seed of the targets and of the candidates' order."""


class Reading(FrozenConfig):
    """How a question's answer is read."""

    answers: Literal["logits", "generation"] = "logits"
    """``logits``: from the probabilities of yes and no, or of the letters; ``generation``: from what is written."""
    max_new_tokens: int = Field(default=32, ge=1, le=4096)
    """Longest written answer, in tokens."""


class IdentificationConfig(Reading):
    """Whose thing is this? Pick the right description among those of look-alikes."""

    num_options: int = Field(default=3, ge=2, le=26)
    """k: options retrieved by CLIP, offered under shuffled letters."""
    image_weight: float = Field(default=0.5, ge=0, le=1)
    """Share of image-to-image similarity in retrieval; the rest is image-to-text."""
    scaling: Literal["min-max", "z-score", "none"] = "min-max"
    """How each similarity is scaled over the candidates before they are mixed."""
    fusion: Literal["mean", "max", "min", "product", "harmonic"] = "mean"
    """How the two similarities become one; ``image_weight`` counts for the mean and the harmonic mean."""
    pool: Literal["category", "all"] = "category"
    """Retrieve and rank among the query's category, or among all concepts."""
    modes: tuple[Literal["retrieval", "oracle"], ...] = ("retrieval", "oracle")
    """``oracle`` guarantees that the truth is among the options; ``retrieval`` does not."""
    max_queries_per_concept: int | None = Field(default=None, ge=1)
    """Fewer test photos per concept than there are, for speed."""
    controls: Controls = True
    """Arms to ask beside, of no-image, no-description, wrong-description, image-only, image-and-text, text-only.

    ``True``: no-description and wrong-description. The last three are answered by the retriever alone."""
    seed: int = 0
    """Seed of the options' order."""


class RecognitionConfig(Reading):
    """Is my thing in this photo? Yes or no, for pairs of photo and description."""

    easy_negatives: Annotated[int, Field(ge=0)] | Literal["all"] = 3
    """Concepts of other categories paired with each photo; ``all`` makes all pairs of photo and description."""
    hard_negatives: int | None = Field(default=None, ge=1)
    """Concepts of the same category paired with each photo; ``None``: all."""
    max_queries_per_concept: int | None = Field(default=None, ge=1)
    """Fewer test photos per concept than there are, for speed."""
    controls: Controls = True
    """Arms to ask beside, of no-image, no-description, wrong-description, image-only, image-and-text (with the
    reference photo beside the photo); ``True``: no-description."""
    seed: int = 0
    """Seed of the negatives' choice."""


class VqaConfig(Reading):
    """Questions about my thing, answered with the description as the memory."""

    show: Literal["description", "image", "both"] = "description"
    """What the answering model gets beside the question."""
    controls: Controls = True
    """Arms to ask beside: all but always-A and majority, which are computed; ``True``: blind, with neither."""
    num_options: int = Field(default=4, ge=2, le=26)
    """Options per question, offered under shuffled letters."""
    questions_per_concept: int | None = Field(default=None, ge=1)
    """Fewer questions per concept than there are, for speed."""
    seed: int = 0
    """Seed of the options' order."""


class StatisticsConfig(FrozenConfig):
    """Intervals and tests."""

    resamples: int = Field(default=2000, ge=100)
    """Bootstrap resamples (of concepts, not of items) and permutations."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Coverage of intervals."""
    seed: int = 0
    """Seed of resampling."""


class SpeakerRef(FrozenConfig):
    """A speaker to be evaluated, under the name that tables show."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 .-]{0,39}$")
    """Shown in tables, e.g. ``seed-1``; letters, digits, blanks, dots, dashes."""
    model: ModelRef
    """The model."""


class EvaluationConfig(FrozenConfig):
    """The evaluations of one or more speakers."""

    answering: ModelRef
    """Model that answers identification, recognition and questions from the descriptions, and plays the game."""
    independent: ModelRef | None = None
    """A listener that no training has seen; it plays the same games as a check."""
    speakers: tuple[SpeakerRef, ...] = ()
    """Speakers evaluated beside the base and the trained one."""
    game: GameEvaluationConfig = GameEvaluationConfig()
    """The game on held-out concepts."""
    identification: IdentificationConfig = IdentificationConfig()
    """Pick the description."""
    recognition: RecognitionConfig = RecognitionConfig()
    """Yes or no."""
    vqa: VqaConfig | None = VqaConfig()
    """Questions; needs ground truth or a question file."""
    controls: Controls | None = None
    """Control arms of all evaluations in one line; ``None``: as each evaluation says. Its own setting goes first."""
    statistics: StatisticsConfig = StatisticsConfig()
    """Intervals and tests."""

    @model_validator(mode="before")
    @classmethod
    def _hand_controls_down(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("controls") is None:
            return data
        given = {"controls": data["controls"]}
        handed = {
            name: {**given, **data.get(name, {})}
            for name in ("identification", "recognition", "vqa")
            if isinstance(data.get(name, {}), dict)
        }
        return {**data, **handed}

    @model_validator(mode="after")
    def _names_are_free(self) -> "EvaluationConfig":
        names = [speaker.name for speaker in self.speakers]
        if taken := {name for name in names if name in RESERVED_SPEAKERS or names.count(name) > 1}:
            raise ValueError(
                f"speakers need names of their own, other than {', '.join(RESERVED_SPEAKERS)}: "
                f"{', '.join(sorted(taken))}"
            )
        return self


class ReportConfig(FrozenConfig):
    """The HTML report."""

    title: str = "Lewis: did the speaker get better?"
    """Headline."""
    gallery: int = Field(default=12, ge=1)
    """Concepts shown with photo, descriptions and the listener's answers."""
    failures: int = Field(default=6, ge=0)
    """Failures worth looking at."""
    seed: int = 0
    """Seed of the gallery's choice."""


class CompareConfig(FrozenConfig):
    """A comparison of finished runs; made from the command line of ``python -m flows compare``."""

    runs: tuple[Path, ...] = Field(min_length=1)
    """Work folders of finished runs, folders of reports, or folders of single evaluations."""
    output: Path
    """Folder that receives ``report.html``, ``tables/`` and ``plots/``."""
    baseline: str | None = None
    """Speaker that the others are tested against; ``None``: ``base``, or else the first one."""
    groups: dict[str, tuple[str, ...]] = {}
    """Speakers that differ in the seed only, by name of their group; none: trainings that do are found."""
    photos: Path | None = None
    """Folder that image paths are relative to, where that of the runs is not on this machine."""
    statistics: StatisticsConfig = StatisticsConfig()
    """Intervals and tests."""
    report: ReportConfig = ReportConfig(title="Lewis: runs compared", gallery=24)
    """Title and sizes."""
