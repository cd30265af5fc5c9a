"""What lies behind the evaluations' numbers."""

from collections.abc import Mapping, Sequence

from prefect import flow

from flows import steps
from flows.steps import Evaluated, Photos
from lewis_core import pipeline
from lewis_core.artifacts import ArtifactRef
from lewis_core.config.pipeline import PipelineConfig
from lewis_core.evaluation.analyses.hallucination import load_reference
from lewis_core.records import JsonObject
from tasks.hooks import HOOKS
from tasks.run import PipelineRun, pipeline_run


@flow(name="analyse", **HOOKS)
def analyse(config: PipelineConfig) -> JsonObject:
    """Look behind the evaluations of every speaker there is; evaluates those that were not evaluated yet."""
    with pipeline_run(config, "analyse") as run:
        photos = steps.read_photos(run)
        who = steps.speakers(run, steps.find_trained(run, photos))
        evaluated = steps.evaluate(run, photos, who, steps.describe(run, photos, who))
        found = look_closer(run, photos, evaluated)
        for one in evaluated:
            found |= ask_listeners(run, photos, one)
        run.stop_services()  # what comes now loads models of its own
        for one in evaluated:
            found |= ask_more(run, one)
        return {"analyses": outcomes(found), "mlflow_run_id": run.tracker.run_id, **run.facts()}


def look_closer(run: PipelineRun, photos: Photos, evaluated: Sequence[Evaluated]) -> dict[str, ArtifactRef]:
    """Analyse what the evaluations have written, without asking a model: a matter of seconds."""
    config, statistics = run.config.analyses, run.config.evaluation.statistics
    found = {
        "uncertainty": run.stage(
            pipeline.ANALYSE_UNCERTAINTY,
            evaluations=[result for one in evaluated for result in one.results],
            config=config.uncertainty,
            statistics=statistics,
        )
    }
    for one in evaluated:
        found[f"hallucination {one.speaker.name}"] = run.stage(
            pipeline.ANALYSE_HALLUCINATION,
            label=one.speaker.name,
            database=one.database,
            catalog=photos.catalog,
            evaluations=list(one.results),
            reference=load_reference(config.hallucination),
            listed=config.hallucination.listed,
            statistics=statistics,
        )
    for other in evaluated[1:]:
        found[f"examples {other.speaker.name}"] = find_examples(run, evaluated[0], other)
    return found


def outcomes(found: Mapping[str, ArtifactRef]) -> JsonObject:
    """Where results are, and what they say."""
    return {name: {"path": str(ref.path), **ref.summary} for name, ref in found.items()}


def analysis_paths(found: Mapping[str, ArtifactRef]) -> JsonObject:
    """Where results are, under a name in the last line that no speaker can have."""
    return {"analysis_results": {name: str(ref.path) for name, ref in found.items()}}


def ask_listeners(run: PipelineRun, photos: Photos, one: Evaluated) -> dict[str, ArtifactRef]:
    """Harder games with every listener, for one speaker."""
    if run.config.analyses.bags is None:
        return {}
    name = one.speaker.name
    found = {f"bags {name} {role}": ref for role, ref in play_bags(run, photos, one).items()}
    if len(found) > 1:
        listener, other = found.values()
        found[f"cross-listener {name}"] = run.stage(
            pipeline.COMPARE_LISTENERS,
            label=name,
            listener=listener,
            other=other,
            statistics=run.config.evaluation.statistics,
        )
    return found


def ask_more(run: PipelineRun, one: Evaluated) -> dict[str, ArtifactRef]:
    """A judge, and asking again with photos, for one speaker."""
    config, name = run.config.analyses, one.speaker.name
    found: dict[str, ArtifactRef] = {}
    if config.judge is not None:
        found[f"judge {name}"] = run.stage(
            pipeline.JUDGE_DESCRIPTIONS, label=name, descriptions=one.database, config=config.judge
        )
    if config.visual is not None:
        found[f"visual {name}"] = run.stage(
            pipeline.COMPARE_VISUALLY,
            label=name,
            identification=next(ref for ref in one.results if ref.kind == pipeline.EVALUATE_IDENTIFICATION.name),
            database=one.database,
            answering=run.config.evaluation.answering,
            config=config.visual,
        )
    return found


def play_bags(run: PipelineRun, photos: Photos, one: Evaluated) -> dict[str, ArtifactRef]:
    """Play with small and large bags against every listener; results by the listener's role."""
    config = run.config.evaluation
    listeners = [(steps.LISTENER, config.answering), (steps.INDEPENDENT, config.independent)]
    return {
        role: run.stage(
            pipeline.PLAY_BAGS,
            label=f"{one.speaker.name} {role}",
            service=run.service(role, ref),
            database=one.database,
            catalog=photos.catalog,
            embeddings=photos.embeddings,
            answering_name=role,
            answering=ref,
            config=run.config.analyses.bags,
            statistics=config.statistics,
        )
        for role, ref in listeners
        if ref is not None
    }


def find_examples(run: PipelineRun, baseline: Evaluated, other: Evaluated) -> ArtifactRef:
    """Items in which a speaker and the baseline differ."""
    return run.stage(
        pipeline.FIND_EXAMPLES,
        label=other.speaker.name,
        baseline=list(baseline.results),
        other=list(other.results),
        baseline_database=baseline.database,
        other_database=other.database,
        config=run.config.analyses.examples,
    )
