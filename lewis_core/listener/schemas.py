"""Requests and answers of the model service, shared by both ends and by models in the same process.

One question form covers listening, recognition, identification and questions: an image (or none), and for it any
number of prompts, each with the answers to choose from. Games are the listener's own form: candidates × descriptions.
Image references are paths relative to the service's image root, with forward slashes.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from lewis_core.records import Record

MAX_TEXT = 8192
MAX_CANDIDATES, MAX_DESCRIPTIONS = 64, 256
"""Of one game."""
Patience = Annotated[float | None, Field(gt=0, le=86_400, allow_inf_nan=False)]
"""Seconds after which an answer is not wanted any more; the header ``X-Request-Timeout`` says the same."""


class ScoreGame(Record):
    """Candidates and descriptions: how well does each description fit each candidate?"""

    candidates: tuple[str, ...] = Field(min_length=1, max_length=MAX_CANDIDATES)
    """Image references."""
    descriptions: tuple[str, ...] = Field(min_length=1, max_length=MAX_DESCRIPTIONS)
    """Texts that the listener reads, not empty."""
    category: str = Field(default="object", max_length=200)
    """Category word for the prompt."""

    @model_validator(mode="after")
    def _readable(self) -> "ScoreGame":
        for text in self.descriptions:
            if not text.strip() or len(text) > MAX_TEXT:
                raise ValueError(f"a description must have 1 to {MAX_TEXT} characters, this one has {len(text)}")
        return self


class GameScores(Record):
    """The listener's answers for one game; each matrix is descriptions × candidates."""

    yes_log_odds: tuple[tuple[float, ...], ...]
    """Log-odds of yes against no (natural logarithm), over all spellings of the two words."""
    yes_probability: tuple[tuple[float, ...], ...]
    """P(yes) / (P(yes) + P(no)), in [0, 1]."""
    captured_mass: tuple[tuple[float, ...], ...]
    """P(yes) + P(no) among all tokens, in [0, 1]; low values mean that the model wanted to say something else."""


class Question(Record):
    """A prompt and the answers to choose from."""

    prompt: str = Field(min_length=1, max_length=MAX_TEXT * 4)
    """Text after the image; rendered by :mod:`lewis_core.prompts`."""
    choices: tuple[str, ...] = Field(min_length=2, max_length=26)
    """Answers, e.g. ``("yes", "no")`` or letters; spelling variants are summed."""


class ChoiceItem(Record):
    """Questions about one image, or about none."""

    image: str | None
    questions: tuple[Question, ...] = Field(min_length=1, max_length=1024)


class ChoiceAnswer(Record):
    """Answer to one question."""

    log_probs: tuple[float, ...]
    """Log-probability of each choice among all tokens, in the question's order."""
    captured_mass: float
    """Sum of the choices' probabilities, in [0, 1]."""


class GenerateItem(Record):
    """A prompt about an image to be continued."""

    image: str | None
    prompt: str = Field(min_length=1, max_length=MAX_TEXT * 4)
    num_return: int = Field(default=1, ge=1, le=256)
    """Completions; more than one needs a temperature above 0."""
    max_new_tokens: int = Field(default=128, ge=1, le=4096)
    temperature: float = Field(default=0.0, ge=0, le=10, allow_inf_nan=False)
    """0 is greedy."""
    seed: int = 0
    """Seed of sampling."""


class ScoreRequest(Record):
    """Body of ``POST /v1/score``."""

    games: tuple[ScoreGame, ...] = Field(min_length=1, max_length=1024)
    timeout_s: Patience = None


class ScoreResponse(Record):
    """Answer of ``POST /v1/score``, in the request's order."""

    games: tuple[GameScores, ...]
    took_s: float


class ChooseRequest(Record):
    """Body of ``POST /v1/choose``."""

    items: tuple[ChoiceItem, ...] = Field(min_length=1, max_length=4096)
    timeout_s: Patience = None


class ChooseResponse(Record):
    """Answer of ``POST /v1/choose``: per item, one answer per question."""

    items: tuple[tuple[ChoiceAnswer, ...], ...]
    took_s: float


class GenerateRequest(Record):
    """Body of ``POST /v1/generate``."""

    items: tuple[GenerateItem, ...] = Field(min_length=1, max_length=1024)
    timeout_s: Patience = None


class GenerateResponse(Record):
    """Answer of ``POST /v1/generate``: per item, its completions."""

    items: tuple[tuple[str, ...], ...]
    took_s: float


class Problem(Record):
    """Body of every error (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    request_id: str


class CacheStatistics(Record):
    """How much of a cache is used, and how well."""

    entries: int = 0
    num_bytes: int = 0
    max_bytes: int = 0
    hits: int = 0
    """Things that were found in it."""
    misses: int = 0
    """Things that had to be computed."""
    evictions: int = 0
    """Things that made room for others."""

    @property
    def hit_rate(self) -> float:
        """Share of hits among all lookups, in [0, 1]; 0 before the first."""
        return self.hits / ((self.hits + self.misses) or 1)


class Serves(Record):
    """The model that a service has, as far as it can be told without reading gigabytes."""

    path: str
    """Its name: a folder there, or a hub id."""
    revision: str | None = None
    adapter: str | None = None
    """Digest of the adapter's files."""
    prompts: str
    """Wording of the questions."""
    min_pixels: int
    max_pixels: int


class Readiness(Record):
    """Body of ``GET /readyz``."""

    status: Literal["loading", "ready", "stopping", "failed"]
    model: str
    detail: str = ""
    """Why it failed, or why the last exchange of the model did."""
    generation: int = 1
    """Counts the models that the service has had."""
    vision_cache: CacheStatistics | None = None
    """Vision features of images that are kept; ``None`` if the model keeps none."""
    prompt_cache: CacheStatistics | None = None
    """Keys and values of images that are kept; ``None`` if the model keeps none."""
    serves: Serves | None = None
    """The model as it was loaded; ``None`` before that."""


class ReferenceScoreRequest(BaseModel):
    """Body of ``POST /score``, as the reference's clients send it; further keys are ignored, as they were there."""

    candidate_paths: tuple[str, ...] = Field(min_length=1, max_length=1024)
    """Image references."""
    question: str = Field(min_length=1, max_length=MAX_TEXT * 4)
    """The whole question, asked as it is; answered with yes or no."""
    topk: int = 1
    """Without effect, there as here."""


class ReferenceScoreResult(Record):
    """One result of ``POST /batch_score``."""

    yes_probabilities: tuple[float, ...]
    predicted_index: int
    reward_score: float


class ReferenceScoreResponse(ReferenceScoreResult):
    """Answer of ``POST /score``."""

    took: float


class ReferenceBatchRequest(BaseModel):
    """Body of ``POST /batch_score``."""

    batch: tuple[ReferenceScoreRequest, ...] = Field(min_length=1, max_length=1024)


class ReferenceBatchResponse(Record):
    """Answer of ``POST /batch_score``."""

    results: tuple[ReferenceScoreResult, ...]
    took: float
