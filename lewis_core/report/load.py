"""What a report is made of, read from artifacts into one :class:`ReportData`.

Everything but the catalog may be missing; the report then says less.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from lewis_core.artifacts import PROVENANCE, ArtifactRef
from lewis_core.errors import ArtifactError, DataError
from lewis_core.evaluation.records import Comparison, EvaluationResult, PairedTest, Prediction, SeedSummary
from lewis_core.records import Catalog, Database, DatabaseEntry, JsonObject, load_jsonl, load_record

LISTENER = "listener"
"""The answering model whose game is shown in the gallery, when there are several."""


@dataclass(frozen=True)
class Training:
    """What a training run left behind: one row per update, sampled completions, totals and settings."""

    metrics: tuple[JsonObject, ...]
    completions: tuple[JsonObject, ...]
    summary: JsonObject
    settings: JsonObject
    wall_s: float | None = None
    """Seconds it took."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of one speaker by one answering model: its numbers and its items."""

    result: EvaluationResult
    predictions: tuple[Prediction, ...]


@dataclass(frozen=True)
class Speaker:
    """One arm of the comparison; ``slot`` 0 is the baseline and fixes its colour everywhere."""

    name: str
    slot: int
    entries: dict[str, DatabaseEntry] = field(default_factory=dict)
    """By concept id."""


@dataclass(frozen=True)
class ReportData:
    """All inputs of a report. ``speakers`` begins with the baseline when there is one to compare with."""

    catalog: Catalog
    quarantine: tuple[JsonObject, ...]
    speakers: tuple[Speaker, ...]
    evaluations: tuple[Evaluation, ...]
    comparisons: tuple[Comparison, ...]
    training: Training | None = None
    facts: JsonObject = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of the libraries that made the numbers."""
    seeds: tuple[SeedSummary, ...] = ()
    """Speakers that differ in the seed of their training only, put together."""
    trainings: tuple[tuple[str, Training], ...] = ()
    """Trainings of several speakers, by name; ``training`` is the one of a report about a single run."""
    remarks: tuple[str, ...] = ()
    """What else a reader must know, e.g. what could not be compared."""

    @property
    def baseline(self) -> Speaker | None:
        """The speaker that others are compared with; ``None`` when there is only one."""
        return self.speakers[0] if len(self.speakers) > 1 else None

    @property
    def main(self) -> Speaker | None:
        """The speaker that the report is about."""
        return self.speakers[min(1, len(self.speakers) - 1)] if self.speakers else None

    def find(self, evaluation: str, speaker: str, answering: str | None = None) -> Evaluation | None:
        """Look up one evaluation; without ``answering``, the listener's comes first."""
        found = [
            item
            for item in self.evaluations
            if item.result.evaluation == evaluation
            and item.result.speaker == speaker
            and answering in {None, item.result.answering}
        ]
        return min(found, key=lambda item: (item.result.answering != LISTENER, item.result.answering), default=None)

    def test(self, evaluation: str, answering: str, metric: str, speaker: str) -> PairedTest | None:
        """Look up the paired test of a speaker against the baseline."""
        for comparison in self.comparisons:
            if comparison.speaker != speaker:
                continue
            for test in comparison.tests:
                if (test.evaluation, test.answering, test.metric) == (evaluation, answering, metric):
                    return test
        return None


def load_report_data(
    catalog: ArtifactRef,
    training: ArtifactRef | None,
    databases: Sequence[ArtifactRef],
    evaluations: Sequence[ArtifactRef],
    comparisons: Sequence[ArtifactRef],
    facts: JsonObject,
) -> ReportData:
    """Read all artifacts of a report.

    Raises:
        DataError: If a file is not what its artifact promises.
        ArtifactError: If an artifact lacks a file that it must have.
    """
    loaded = tuple(load_record(ref.file("comparison.json"), Comparison) for ref in comparisons)
    results = tuple(_load_evaluation(ref) for ref in evaluations)
    stored = [load_record(ref.file("database.json"), Database) for ref in databases]
    return ReportData(
        catalog=load_record(catalog.file("catalog.json"), Catalog),
        quarantine=_load_rows(catalog, "quarantine.jsonl"),
        speakers=_order_speakers(stored, results, loaded),
        evaluations=results,
        comparisons=loaded,
        training=load_training(training) if training else None,
        facts=facts,
        versions=_load_versions([training] if training else evaluations),
    )


def _order_speakers(
    databases: Sequence[Database], evaluations: Sequence[Evaluation], comparisons: Sequence[Comparison]
) -> tuple[Speaker, ...]:
    """Baseline first, then those compared with it, then the rest, each in the order given."""
    names = [name for comparison in comparisons for name in (comparison.baseline, comparison.speaker)]
    names += [database.speaker for database in databases]
    names += [evaluation.result.speaker for evaluation in evaluations]
    entries = {database.speaker: {entry.concept: entry for entry in database.entries} for database in databases}
    return tuple(Speaker(name, slot, entries.get(name, {})) for slot, name in enumerate(dict.fromkeys(names)))


def _load_evaluation(ref: ArtifactRef) -> Evaluation:
    result = load_record(ref.file("metrics.json"), EvaluationResult)
    if result.evaluation == "descriptions":
        return Evaluation(result, ())
    return Evaluation(result, tuple(load_jsonl(ref.file("predictions.jsonl"), Prediction)))


def load_training(ref: ArtifactRef) -> Training:
    """Read what a training left behind.

    Raises:
        DataError: If a file is not what its artifact promises.
        ArtifactError: If the artifact lacks a file that it must have, or is damaged.
    """
    summary = _parse_object(ref.file("summary.json").read_text(encoding="utf-8"), "summary.json")
    settings = ref.verify().arguments.get("config", {})
    metrics, completions = _load_rows(ref, "metrics.jsonl"), _load_rows(ref, "completions.jsonl")
    return Training(
        metrics,
        completions,
        summary,
        settings=settings if isinstance(settings, dict) else {},
        wall_s=_load_provenance(ref).get("wall_s"),
    )


def _load_versions(refs: Sequence[ArtifactRef]) -> dict[str, str]:
    """Versions of libraries that artifacts were made with; several of one library if they were not the same."""
    found: dict[str, set[str]] = {}
    for ref in refs:
        for name, version in _load_provenance(ref).get("versions", {}).items():
            found.setdefault(name, set()).update([version] if version else [])
    return {name: ", ".join(sorted(versions)) for name, versions in sorted(found.items()) if versions}


def _load_provenance(ref: ArtifactRef) -> JsonObject:
    """When and with what an artifact was made: no part of its content, so it may be missing."""
    path = ref.path / PROVENANCE
    return _parse_object(path.read_text(encoding="utf-8"), str(path)) if path.is_file() else {}


def _load_rows(ref: ArtifactRef, name: str) -> tuple[JsonObject, ...]:
    """Read a JSONL file; an artifact without it has no rows."""
    try:
        path = ref.file(name)
    except ArtifactError:
        return ()
    lines = path.read_text(encoding="utf-8").split("\n")
    return tuple(_parse_object(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip())


def _parse_object(text: str, place: str) -> JsonObject:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DataError(f"{place}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{place}: expected a JSON object, found {type(value).__name__}")
    return value
