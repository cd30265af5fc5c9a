"""The data that travels between stages, as frozen records.

Identity comes from here, never from a path's position: a concept is named by ``category/name`` everywhere.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from lewis_core.errors import DataError


class Record(BaseModel):
    """Base of records: immutable, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _stay_inside(path: str) -> str:
    if path.startswith("/") or ".." in path.split("/"):
        raise ValueError(f"image path {path!r} must be relative to the data root and stay inside it")
    return path


class ImageRecord(Record):
    """One readable image of the data set."""

    path: Annotated[str, AfterValidator(_stay_inside)]
    """Relative to the data root, with forward slashes."""
    sha256: str
    """Digest of the file's bytes."""
    width: int
    """Pixels, after EXIF orientation."""
    height: int
    """Pixels, after EXIF orientation."""


class Concept(Record):
    """One individual thing and its photos."""

    category: str
    """Folder name of its kind, e.g. ``tro_bag``."""
    category_word: str
    """Word for its kind in prompts, e.g. ``trolley bag``."""
    name: str
    """Folder name of the thing; unique within its category only."""
    train: tuple[ImageRecord, ...] = ()
    test: tuple[ImageRecord, ...] = ()
    negative: tuple[ImageRecord, ...] = ()
    """Images collected for this concept that do not show it."""
    hard_negative: tuple[ImageRecord, ...] = ()
    """Negatives that show something very like it."""

    @property
    def id(self) -> str:
        """``category/name``: unique in the catalog."""
        return f"{self.category}/{self.name}"


class Catalog(Record):
    """All concepts, sorted by id. Image paths are relative to the data root, which is not part of the record."""

    concepts: tuple[Concept, ...]
    negatives: tuple[ImageRecord, ...] = ()
    """Images that show none of the concepts, e.g. from the web; sorted by path."""

    @property
    def categories(self) -> tuple[str, ...]:
        """Sorted names of the categories."""
        return tuple(sorted({concept.category for concept in self.concepts}))

    def concept(self, concept_id: str) -> Concept:
        """Find a concept by id.

        Raises:
            DataError: If the catalog has no such concept.
        """
        for concept in self.concepts:
            if concept.id == concept_id:
                return concept
        raise DataError(f"the catalog has no concept {concept_id!r}; it holds {len(self.concepts)} concepts")

    def select(self, concept_ids: Iterable[str]) -> "Catalog":
        """Keep the named concepts only, in catalog order."""
        wanted = set(concept_ids)
        return Catalog(concepts=tuple(c for c in self.concepts if c.id in wanted), negatives=self.negatives)


class Splits(Record):
    """Concept-level split: disjoint ids of concepts, each sorted."""

    training: tuple[str, ...]
    held_out: tuple[str, ...]
    unused: tuple[str, ...] = ()
    """Neither trained on nor evaluated."""

    @model_validator(mode="after")
    def _disjoint(self) -> "Splits":
        if both := set(self.training) & set(self.held_out):
            raise ValueError(f"concepts both trained on and held out: {sorted(both)[:5]}")
        if used := set(self.unused) & {*self.training, *self.held_out}:
            raise ValueError(f"concepts both used and unused: {sorted(used)[:5]}")
        return self


class Game(Record):
    """One game: the speaker sees ``query``, the listener must find ``candidates[target_index]`` from the words."""

    id: str
    concept: str
    """Id of the query's concept."""
    category: str
    category_word: str
    query: ImageRecord
    candidates: tuple[ImageRecord, ...] = Field(min_length=2)
    candidate_concepts: tuple[str, ...]
    """Concept ids, aligned with ``candidates``."""
    target_index: int = Field(ge=0)

    @model_validator(mode="after")
    def _playable(self) -> "Game":
        if len(self.candidate_concepts) != len(self.candidates) or self.target_index >= len(self.candidates):
            raise ValueError(
                f"game {self.id}: {len(self.candidates)} candidates, {len(self.candidate_concepts)} concepts, "
                f"target_index {self.target_index}"
            )
        if self.candidate_concepts[self.target_index] != self.concept:
            raise ValueError(
                f"game {self.id}: the target shows {self.candidate_concepts[self.target_index]}, not {self.concept}"
            )
        if self.candidate_concepts.count(self.concept) != 1:
            raise ValueError(f"game {self.id}: the concept is among its own distractors")
        if self.candidates[self.target_index].sha256 == self.query.sha256:
            raise ValueError(f"game {self.id}: the target is the query photo itself")
        return self


class Description(Record):
    """Parsed speaker text. The raw text is called a completion."""

    thinking: str
    coarse: str
    detailed: str

    @property
    def text(self) -> str:
        """What listeners and answering models read: ``coarse. detailed``."""
        return f"{self.coarse.rstrip('.')}. {self.detailed}"


class DatabaseEntry(Record):
    """What a personal database holds of one concept."""

    concept: str
    """Concept id."""
    category: str
    category_word: str
    reference: ImageRecord
    """The enrolled photo that was described."""
    completion: str
    """The speaker's raw text."""
    description: Description | None
    """``None`` when the completion does not follow the format; such entries are answered from and counted apart."""
    error: str | None = None
    """Why ``description`` is missing."""

    @property
    def text(self) -> str:
        """The description's text, or nothing when there is none."""
        return self.description.text if self.description else ""


class Database(Record):
    """Concept id → description, for one speaker; entries sorted by concept id."""

    speaker: str
    """Name of the speaker in tables."""
    entries: tuple[DatabaseEntry, ...]


class VqaItem(Record):
    """One multiple-choice question about a concept."""

    id: str
    concept: str
    """Concept id."""
    image: str | None
    """Path of the photo it is asked about, relative to the data root; ``None`` for questions to the memory alone."""
    question: str
    """Text in which ``<sks>`` stands for the thing."""
    options: tuple[str, ...] = Field(min_length=2)
    correct: int = Field(ge=0)
    """Index of the right option."""


RecordT = TypeVar("RecordT", bound=BaseModel)


def save_jsonl(path: Path, records: Iterable[BaseModel]) -> int:
    """Write records, one JSON object a line; returns how many."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(record.model_dump_json() + "\n")
            count += 1
    return count


def load_jsonl(path: Path, record_type: type[RecordT]) -> list[RecordT]:
    """Read records written by :func:`save_jsonl`.

    Raises:
        DataError: If a line is not such a record; names file, line and reason.
    """
    return list(iter_jsonl(path, record_type))


def iter_jsonl(path: Path, record_type: type[RecordT]) -> Iterator[RecordT]:
    """Read records written by :func:`save_jsonl` one at a time.

    Raises:
        DataError: If a line is not such a record; names file, line and reason.
    """
    with path.open("rb") as file:  # bytes: the validator says where they are no text
        for number, line in enumerate(file, 1):
            try:
                yield record_type.model_validate_json(line)
            except ValueError as error:
                raise DataError(f"{path}, line {number}: not a {record_type.__name__}: {error}") from error


def load_record(path: Path, record_type: type[RecordT]) -> RecordT:
    """Read one record from a JSON file.

    Raises:
        DataError: If the file is missing or is not such a record.
    """
    try:
        return record_type.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a {record_type.__name__}: {error}") from error


def save_record(path: Path, record: BaseModel) -> None:
    """Write one record as indented JSON."""
    path.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")


JsonObject = dict[str, Any]
