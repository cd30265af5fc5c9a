"""Every checkpoint that there is gets evaluated once, and the best one becomes the champion.

What was evaluated is known from the stages' identities (checkpoint, settings, photos, source), so a run after another
computes nothing, a run after an outage picks up what was missed, and two runs at once share the work.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from prefect import flow

from flows import steps
from flows.leaderboard import Standing, publish, standing_summary
from flows.steps import Evaluated, Photos
from lewis_core import pipeline
from lewis_core.artifacts import ArtifactRef
from lewis_core.config.evaluation import SpeakerRef
from lewis_core.config.pipeline import PipelineConfig
from lewis_core.errors import EvaluationError, LewisError
from lewis_core.evaluation.champion import deciding_number, deciding_test, is_better
from lewis_core.evaluation.records import Comparison, PairedTest
from lewis_core.records import JsonObject, load_record
from tasks.checkpoints import Checkpoint, find_checkpoints
from tasks.hooks import HOOKS
from tasks.registry import Registry
from tasks.run import PipelineRun, pipeline_run

logger = logging.getLogger(__name__)
Number = tuple[str, str, str]


@dataclass(frozen=True)
class Verdict:
    """Who was the champion, and who is."""

    before: str
    """Label; ``base`` if no checkpoint was."""
    after: str
    is_promoted: bool
    """Whether the alias was moved."""


@flow(name="reevaluate-checkpoints", **HOOKS)
def reevaluate_checkpoints(config: PipelineConfig) -> JsonObject:
    """Evaluate every checkpoint that was not evaluated yet, compare it with the champion, and promote what is better.

    Checkpoints are the versions of the registered model, and adapter folders below a watched folder. Those that do not
    belong to these settings' base model, or are not whole, are listed with the reason.
    """
    with pipeline_run(config, "reevaluate-checkpoints") as run:
        number = deciding_number(run.config.reevaluation.champion, run.config.evaluation.independent is not None)
        registry = open_registry(run)
        found = find_checkpoints(run.config.reevaluation, run.config.training.model, registry)
        standings = evaluate_all(run, found)
        with run.exclusively("champion"):
            standings, verdict = choose_champion(run, registry, standings, number)
        publish(run, registry, standings, number, verdict.before, verdict.after, verdict.is_promoted)
        if failed := [one for one in standings if one.error]:
            raise EvaluationError(
                f"{len(failed)} of {len(found)} checkpoints could not be evaluated, the others were: "
                + "; ".join(f"{one.label}: {one.error}" for one in failed)
            )
        return {
            "champion": verdict.after,
            "promoted": verdict.is_promoted,
            "checkpoints": standing_summary(standings),
            "mlflow_run_id": run.tracker.run_id,
            **run.facts(),
        }


def open_registry(run: PipelineRun) -> Registry | None:
    """The model registry, if it is to be asked."""
    name = run.config.run.tracking.registered_model
    if not run.config.reevaluation.registry or name is None:
        return None
    return Registry(run.tracker.uri, name, run.work_dir / "checkpoints", run.store)


def evaluate_all(run: PipelineRun, found: Sequence[Checkpoint]) -> list[Standing]:
    """Evaluate the base and every checkpoint; one that fails does not keep the others from it.

    All describe first, while no model service needs memory.
    """
    usable = [one for one in found if one.adapter is not None]
    if not usable:
        return [Standing(one.label, one) for one in found]
    photos, base = steps.read_photos(run), run.config.training.model
    speaker = SpeakerRef(name=steps.BASE, model=base)
    evaluated = Standing(steps.BASE, None, speaker, steps.describe_one(run, photos, speaker, steps.BASE))
    described = [describe_checkpoint(run, photos, one) for one in found]
    standings = [evaluate_standing(run, photos, evaluated, is_needed=True)]
    standings += [evaluate_standing(run, photos, one) for one in described]
    run.stop_services()
    return standings


def describe_checkpoint(run: PipelineRun, photos: Photos, checkpoint: Checkpoint) -> Standing:
    """Let a checkpoint describe held-out concepts.

    Its name in results is that of every trained speaker, so that what the pipeline evaluated is not evaluated again.
    """
    standing = Standing(checkpoint.label, checkpoint)
    if checkpoint.adapter is None:
        return standing
    model = run.config.training.model.model_copy(update={"adapter": checkpoint.adapter})
    speaker, before = SpeakerRef(name=steps.TRAINED, model=model), len(run.wall_s)
    try:
        database = steps.describe_one(run, photos, speaker, checkpoint.label)
    except LewisError as error:
        logger.error("%s cannot describe: %s", checkpoint.label, error)
        return replace(standing, error=f"{type(error).__name__}: {error}")
    return replace(standing, speaker=speaker, database=database, computed=len(run.wall_s) - before)


def evaluate_standing(run: PipelineRun, photos: Photos, standing: Standing, is_needed: bool = False) -> Standing:
    """Evaluate what was described.

    Raises:
        LewisError: If it is needed and fails.
    """
    if standing.speaker is None or standing.database is None:
        return standing
    before = len(run.wall_s)
    try:
        evaluated = steps.evaluate_one(run, photos, standing.speaker, standing.database, standing.label)
    except LewisError as error:
        if is_needed:
            raise
        logger.error("%s cannot be evaluated: %s", standing.label, error)
        return replace(standing, error=f"{type(error).__name__}: {error}")
    return replace(standing, evaluated=evaluated, computed=standing.computed + len(run.wall_s) - before)


def choose_champion(
    run: PipelineRun, registry: Registry | None, standings: Sequence[Standing], number: Number
) -> tuple[list[Standing], Verdict]:
    """Compare all with the champion, find a better one, and give it the alias.

    Whoever is better than the champion takes its place, from the oldest version on; a version that was the champion
    before is not put back.
    """
    config = run.config.reevaluation.champion
    before = champion_of(registry, standings)
    best = before
    for one in standings:
        version = one.checkpoint.version if one.checkpoint is not None else None
        if best is None or version is None or one is best or one.checkpoint is None or one.checkpoint.is_retired:
            continue
        if is_better(run_test(run, best, one, number), config):
            best = one
    tested = [replace(one, test=run_test(run, best, one, number) if best is not None else None) for one in standings]
    is_promoted = config.promote and registry is not None and best is not None and best is not before
    if is_promoted and registry is not None and best is not None and best.checkpoint is not None:
        registry.promote(str(best.checkpoint.version))
        logger.info("%s is the champion now", best.label)
    return tested, Verdict(label_of(before), label_of(best), is_promoted)


def label_of(standing: Standing | None) -> str:
    """A name for tables."""
    return "none" if standing is None else standing.label


def champion_of(registry: Registry | None, standings: Sequence[Standing]) -> Standing | None:
    """Whom the others are compared with: the version that has the alias, else the base.

    ``None`` if the champion could not be evaluated: nobody can be said to be better than it.
    """
    number = registry.champion() if registry is not None else None
    for one in standings:
        version = one.checkpoint.version if one.checkpoint is not None else None
        if version == number and (number is not None or one.checkpoint is None):
            return one if one.evaluated is not None else None
    return None


def run_test(run: PipelineRun, baseline: Standing, other: Standing, number: Number) -> PairedTest | None:
    """Test the deciding number on the same items; ``None`` where there is nothing to compare."""
    if baseline.evaluated is None or other.evaluated is None or other is baseline:
        return None
    compared = compare(run, baseline.evaluated, other.evaluated, f"{other.label} with {baseline.label}")
    return deciding_test(load_record(compared.file("comparison.json"), Comparison), number)


def compare(run: PipelineRun, baseline: Evaluated, other: Evaluated, label: str) -> ArtifactRef:
    """Compare two speakers on the same items."""
    return run.stage(
        pipeline.COMPARE_SPEAKERS,
        label=label,
        baseline=list(baseline.results),
        other=list(other.results),
        config=run.config.evaluation.statistics,
    )
