"""The speakers of several runs as arms of one comparison: named apart, each once, grouped by recipe.

A speaker that several runs have in common (the base, with the same words for the same things) is one arm. Trainings
that differ in the seed only are a group.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from lewis_core.artifacts import ArtifactRef, digest_json
from lewis_core.errors import EvaluationError
from lewis_core.evaluation import descriptions, io
from lewis_core.evaluation.compare import Key, Rows
from lewis_core.evaluation.records import EvaluationResult, Prediction
from lewis_core.records import Database, load_jsonl, load_record
from lewis_core.report.load import Training, load_training
from lewis_core.report.runs import FinishedRun

TRAINED = "trained"


@dataclass(frozen=True)
class Arm:
    """One speaker: its words, its evaluations, and how it was trained."""

    name: str
    run: str
    database: Database
    speaker: str = ""
    """Its name in its own run."""
    also: list[str] = field(default_factory=list)
    """Other runs that have it as well."""
    results: dict[Key, EvaluationResult] = field(default_factory=dict)
    rows: dict[Key, Rows] = field(default_factory=dict)
    training: Training | None = None
    recipe: str | None = None
    """Digest of the training but for its seed."""
    trained_by: str | None = None
    """Digest of the training itself, seed and result."""
    words: str = ""
    """Digest of the database's artifact."""
    asked: dict[Key, str] = field(default_factory=dict)
    """Digest of how it was evaluated: settings, data, answering model."""
    answering: dict[Key, str] = field(default_factory=dict)
    """Digest of the answering model alone."""


def collect_arms(runs: Sequence[FinishedRun]) -> list[Arm]:
    """Read all speakers of all runs; names are unique.

    Raises:
        EvaluationError: If a run has an evaluation of a speaker without its database.
    """
    arms: list[Arm] = []
    for run in _name_apart(runs):
        for arm in _arms_of(run):
            known = next((other for other in arms if _is_same(other, arm)), None)
            if known is None:
                arms.append(arm)
                continue
            known.also.append(arm.run)
            for key in arm.results.keys() - known.results.keys():
                known.results[key], known.rows[key], known.asked[key] = arm.results[key], arm.rows[key], arm.asked[key]
    return _rename(arms)


def _is_same(one: Arm, other: Arm) -> bool:
    """Whether two arms are one speaker with the same words, asked in the same way by the same models.

    Two trainings are two arms even if they came to the same words.
    """
    common = one.asked.keys() & other.asked.keys()
    return (
        one.trained_by == other.trained_by
        and one.words == other.words
        and all(one.asked[key] == other.asked[key] for key in common)
    )


def _name_apart(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Number runs whose folders have the same name."""
    same = Counter(run.label for run in runs)
    seen: Counter[str] = Counter()
    named = []
    for run in runs:
        seen[run.label] += 1
        named.append(replace(run, label=f"{run.label} {seen[run.label]}") if same[run.label] > 1 else run)
    return named


def _arms_of(run: FinishedRun) -> list[Arm]:
    """Speakers of one run."""
    found: dict[str, Arm] = {}
    for ref in run.databases:
        database = load_record(ref.file("database.json"), Database)
        is_trained = database.speaker == TRAINED and run.training is not None
        found[database.speaker] = Arm(
            name=database.speaker,
            speaker=database.speaker,
            run=run.label,
            database=database,
            training=load_training(run.training) if is_trained and run.training else None,
            recipe=_recipe(run.training) if is_trained and run.training else None,
            trained_by=_training_digest(run.training) if is_trained and run.training else None,
            words=ref.digest,
        )
    for ref in run.evaluations:
        result = load_record(ref.file(io.METRICS), EvaluationResult)
        if result.speaker not in found:
            raise EvaluationError(f"{run.label}: {ref.path} is about {result.speaker}, of whom there is no database")
        arm, key, arguments = found[result.speaker], (result.evaluation, result.answering), ref.verify().arguments
        arm.results[key], arm.rows[key] = result, _load_rows(ref, result)
        arm.asked[key], arm.answering[key] = digest_json(arguments), digest_json(arguments.get("answering"))
    return list(found.values())


def _load_rows(ref: ArtifactRef, result: EvaluationResult) -> Rows:
    if result.evaluation == "descriptions":
        return load_jsonl(ref.file(descriptions.ROWS), descriptions.DescriptionRow)
    return load_jsonl(ref.file(io.PREDICTIONS), Prediction)


def _recipe(training: ArtifactRef) -> str:
    """Digest of everything that made a speaker but the seed."""
    arguments = dict(training.verify().arguments)
    config = arguments.get("config")
    if isinstance(config, Mapping):
        arguments["config"] = {name: value for name, value in config.items() if name != "seed"}
    return digest_json(arguments)


def _training_digest(training: ArtifactRef) -> str:
    return digest_json([training.digest, training.verify().arguments])


def _rename(arms: Sequence[Arm]) -> list[Arm]:
    """Keep names that are unique; else the run's name alone if it has one such arm only, or both names."""
    names = Counter(arm.name for arm in arms)
    own = Counter(arm.run for arm in arms if names[arm.name] > 1)
    renamed = []
    for arm in arms:
        name = arm.name
        if names[name] > 1:
            name = arm.run if own[arm.run] == 1 and arm.run not in names else f"{arm.run} {arm.name}"
        results = {key: result.model_copy(update={"speaker": name}) for key, result in arm.results.items()}
        database = arm.database.model_copy(update={"speaker": name})
        renamed.append(replace(arm, name=name, results=results, database=database))
    return renamed


def find_groups(arms: Sequence[Arm], given: Mapping[str, Sequence[str]]) -> dict[str, list[Arm]]:
    """Put trainings of one recipe together.

    Args:
        arms: All arms.
        given: Names of arms by name of their group; if there are any, no others are made.

    Raises:
        EvaluationError: If a group names an arm that is not there, or fewer than two.
    """
    by_name = {arm.name: arm for arm in arms}
    for group, members in given.items():
        if unknown := [name for name in members if name not in by_name]:
            raise EvaluationError(f"group {group}: there is no speaker {unknown[0]!r}; there are {', '.join(by_name)}")
        if len(set(members)) < 2:
            raise EvaluationError(f"group {group}: expected two speakers or more, found {', '.join(members) or 'none'}")
    if given:
        return {group: [by_name[name] for name in dict.fromkeys(members)] for group, members in given.items()}
    recipes: dict[str, list[Arm]] = {}
    for arm in arms:
        if arm.recipe is not None:
            recipes.setdefault(arm.recipe, []).append(arm)
    several = [members for members in recipes.values() if len(members) > 1]
    return {
        f"{TRAINED}, {len(members)} seeds" + (f" ({members[0].name}, …)" if len(several) > 1 else ""): members
        for members in several
    }
