"""Any number of finished runs in one report: every speaker against a named baseline, seeds of one recipe together.

Numbers are computed anew from the stored items, so that what is compared was counted in the same way; runs that were
asked other questions, or about other pictures, are refused by name.
"""

import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from lewis_core.config.evaluation import CompareConfig, StatisticsConfig
from lewis_core.errors import EvaluationError
from lewis_core.evaluation.compare import HEADLINES, Key, paired_tests
from lewis_core.evaluation.records import Comparison, PairedTest, SeedSummary
from lewis_core.evaluation.seeds import pool_seeds
from lewis_core.evaluation.significance import holm
from lewis_core.records import Catalog, JsonObject, load_record
from lewis_core.report.arms import Arm, collect_arms, find_groups
from lewis_core.report.build import REPORT, render_report, write_report
from lewis_core.report.images import PhotoAlbum
from lewis_core.report.load import Evaluation, ReportData, Speaker
from lewis_core.report.runs import FinishedRun, open_run

BASE = "base"


def compare_runs(config: CompareConfig) -> JsonObject:
    """Write the report of several runs.

    Args:
        config: Runs, baseline, groups, where to write.

    Returns:
        Where the report is, the speakers, and differences with p-values by speaker and number.

    Raises:
        EvaluationError: If a run is not there or damaged, the baseline is unknown, or runs were not asked the same.
    """
    paths = dict.fromkeys(path.expanduser().resolve() for path in config.runs)
    runs = [open_run(path, config.photos) for path in paths]
    catalogs = [load_record(run.catalog.file("catalog.json"), Catalog) for run in runs]
    check_catalogs(runs, catalogs)
    data = contrast(runs, catalogs[0], config)
    album = PhotoAlbum(next((run.photos for run in runs if run.photos is not None), None))
    report = render_report(data, config.report, album)
    with_new = config.output.with_name(f".{config.output.name}-{uuid.uuid4().hex[:8]}")
    with_new.mkdir(parents=True)
    try:
        write_report(report, with_new)
        _move_into(with_new, config.output)
    finally:
        shutil.rmtree(with_new, ignore_errors=True)
    return {
        "report": str(config.output / REPORT),
        "headline": report.headline,
        "baseline": data.speakers[0].name,
        "speakers": [speaker.name for speaker in data.speakers],
        "groups": {seeds.group: list(seeds.speakers) for seeds in data.seeds},
        "tests": {comparison.speaker: _numbers(comparison.tests) for comparison in data.comparisons},
        "photos_missing": len(album.missing),
    }


def contrast(runs: Sequence[FinishedRun], catalog: Catalog, config: CompareConfig) -> ReportData:
    """Gather what a report of several runs shows.

    Raises:
        EvaluationError: If the baseline is unknown, or runs were not asked the same.
    """
    arms = _baseline_first(collect_arms(runs), config.baseline)
    baseline, *others = arms
    comparisons = _correct([_compare(baseline, other, config.statistics) for other in others])
    groups = find_groups(arms, config.groups)
    seeds = [_pool(group, members, baseline, config.statistics) for group, members in groups.items()]
    return ReportData(
        catalog=catalog,
        quarantine=(),
        speakers=tuple(
            Speaker(arm.name, slot, {entry.concept: entry for entry in arm.database.entries})
            for slot, arm in enumerate(arms)
        ),
        evaluations=tuple(
            Evaluation(result, () if key[0] == "descriptions" else tuple(arm.rows[key]))
            for arm in arms
            for key, result in arm.results.items()
        ),
        comparisons=tuple(comparisons),
        facts=_facts(runs, arms),
        seeds=tuple(seeds),
        trainings=tuple((arm.name, arm.training) for arm in arms if arm.training is not None),
        remarks=tuple(_remarks(baseline, others)),
    )


def check_catalogs(runs: Sequence[FinishedRun], catalogs: Sequence[Catalog]) -> None:
    """Refuse runs on other pictures: the same path must be the same picture.

    Raises:
        EvaluationError: If two catalogs have no concept in common, or a path shows two pictures.
    """
    digests = [
        {photo.path: photo.sha256 for concept in catalog.concepts for photo in (*concept.train, *concept.test)}
        for catalog in catalogs
    ]
    for run, catalog, mine in zip(runs[1:], catalogs[1:], digests[1:], strict=True):
        if not {c.id for c in catalog.concepts} & {c.id for c in catalogs[0].concepts}:
            raise EvaluationError(
                f"{runs[0].label} and {run.label} are about other things: their catalogs have no concept in common; "
                "compare runs on the same photos"
            )
        if other := sorted(path for path, digest in mine.items() if digests[0].get(path, digest) != digest):
            raise EvaluationError(
                f"{runs[0].label} and {run.label} are about other pictures: {other[0]} and {len(other) - 1} more "
                "differ; compare runs on the same photos"
            )


def _baseline_first(arms: Sequence[Arm], wanted: str | None) -> list[Arm]:
    names = [arm.name for arm in arms]
    if wanted is not None and wanted not in names:
        raise EvaluationError(f"baseline: there is no speaker {wanted!r}; there are {', '.join(names)}")
    chosen = wanted or (BASE if BASE in names else names[0])
    return sorted(arms, key=lambda arm: arm.name != chosen)


def _compare(baseline: Arm, other: Arm, config: StatisticsConfig) -> Comparison:
    missing = {entry.concept for entry in baseline.database.entries} ^ {e.concept for e in other.database.entries}
    if missing:
        raise EvaluationError(
            f"{baseline.name} ({baseline.run}) and {other.name} ({other.run}) do not describe the same things: only "
            f"one of the databases has {', '.join(sorted(missing)[:3])} ({len(missing)} such concepts); describe the "
            "same split with both"
        )
    tests: list[PairedTest] = []
    for key in _common(baseline, other):
        try:
            tests += paired_tests(key, baseline.rows[key], other.rows[key], config)
        except EvaluationError as error:
            raise EvaluationError(
                f"{baseline.name} ({baseline.run}) and {other.name} ({other.run}): {error}"
            ) from error
    return Comparison(baseline=baseline.name, speaker=other.name, tests=tuple(tests))


def _common(baseline: Arm, other: Arm) -> list[Key]:
    return [key for key in baseline.rows if key in other.rows]


def _correct(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Correct for all tests of the report, not of one speaker only."""
    adjusted = iter(holm([test.p_value for comparison in comparisons for test in comparison.tests]))
    return [
        comparison.model_copy(
            update={"tests": tuple(test.model_copy(update={"p_holm": next(adjusted)}) for test in comparison.tests)}
        )
        for comparison in comparisons
    ]


def _pool(group: str, members: Sequence[Arm], baseline: Arm, config: StatisticsConfig) -> SeedSummary:
    """Put the seeds of one recipe together, and test them together against the baseline unless it is one of them."""
    keys = [key for key in members[0].rows if all(key in member.rows for member in members)]
    against = None if baseline in members else baseline
    metrics = [
        metric
        for key in keys
        for metric in pool_seeds(
            key, [member.rows[key] for member in members], config, against.rows.get(key) if against else None
        )
    ]
    return SeedSummary(group=group, speakers=tuple(member.name for member in members), metrics=tuple(metrics))


def _facts(runs: Sequence[FinishedRun], arms: Sequence[Arm]) -> JsonObject:
    """What was compared, and what is true of all runs."""
    shared = {
        name: value
        for name, value in runs[0].facts.items()
        if name != "name" and all(run.facts.get(name) == value for run in runs)
    }
    speakers = {
        arm.name: (f"{arm.speaker} of " if arm.speaker != arm.name else "") + ", ".join([arm.run, *arm.also])
        for arm in arms
    }
    return {"runs": [run.label for run in runs], **shared, "speakers": speakers}


def _remarks(baseline: Arm, others: Sequence[Arm]) -> list[str]:
    """Evaluations that only some have, and numbers that other models answered for."""
    found = []
    for other in others:
        only = sorted(" of ".join(filter(None, key)) for key in baseline.rows.keys() ^ other.rows.keys())
        if only:
            found.append(
                f"Only one of {baseline.name} and {other.name} was evaluated on {', '.join(only)}: not compared."
            )
        if key := next((k for k in _common(baseline, other) if baseline.answering[k] != other.answering[k]), None):
            found.append(
                f"{baseline.name} and {other.name} were not judged by the same model ({key[0]}): their difference is "
                "one of speaker and judge together."
            )
    return found


def _numbers(tests: Sequence[PairedTest]) -> JsonObject:
    return {
        "/".join(filter(None, (test.evaluation, test.answering, test.metric))): {
            "difference": test.difference,
            "low": test.low,
            "high": test.high,
            "p_value": test.p_value,
            "p_holm": test.p_holm,
        }
        for test in sorted(tests, key=lambda test: [*HEADLINES].index(test.evaluation))
    }


def _move_into(made: Path, output: Path) -> None:
    """Put finished files in place, each in one step; other files of the folder stay."""
    for file in sorted(path for path in made.rglob("*") if path.is_file()):
        place = output / file.relative_to(made)
        place.parent.mkdir(parents=True, exist_ok=True)
        file.replace(place)
