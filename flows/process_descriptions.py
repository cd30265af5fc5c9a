"""A file of descriptions → which of them talk of state and place, and the texts without it."""

from prefect import flow

from lewis_core import pipeline
from lewis_core.artifacts import ArtifactRef, digest_file
from lewis_core.config.pipeline import ProcessDescriptionsConfig
from lewis_core.records import JsonObject
from tasks.hooks import HOOKS
from tasks.run import PipelineRun, pipeline_run


@flow(name="process-descriptions", **HOOKS)
def process_descriptions(config: ProcessDescriptionsConfig) -> JsonObject:
    """Judge the descriptions of a file; if asked to, take state and location out of them and judge the result."""
    with pipeline_run(config, "process-descriptions") as run:
        descriptions = read_descriptions(run)
        judged = judge(run, descriptions, "before")
        found: JsonObject = {"judged": outcome(judged)}
        if run.config.processing.refine != "none":
            refined = refine(run, descriptions, judged)
            found |= {"refined": outcome(refined), "judged_again": outcome(judge(run, refined, "after"))}
        return {**found, "mlflow_run_id": run.tracker.run_id, **run.facts()}


def read_descriptions(run: PipelineRun[ProcessDescriptionsConfig]) -> ArtifactRef:
    """Read the file; its content identifies it."""
    file = run.config.processing.file.expanduser().absolute()
    run.data_root = file.parent
    return run.stage(pipeline.IMPORT_DESCRIPTIONS, name=file.name, sha256=digest_file(file))


def judge(run: PipelineRun[ProcessDescriptionsConfig], descriptions: ArtifactRef, label: str) -> ArtifactRef:
    """Find talk of state and place."""
    config = run.config.processing.judge
    return run.stage(pipeline.JUDGE_DESCRIPTIONS, label=label, descriptions=descriptions, config=config)


def refine(run: PipelineRun[ProcessDescriptionsConfig], descriptions: ArtifactRef, judged: ArtifactRef) -> ArtifactRef:
    """Take it out."""
    config = run.config.processing
    return run.stage(
        pipeline.REFINE_DESCRIPTIONS,
        descriptions=descriptions,
        judged=judged,
        mode=config.refine,
        config=config.judge,
        name=config.file.name,
    )


def outcome(artifact: ArtifactRef) -> JsonObject:
    """Where a result is, and what it says."""
    return {"path": str(artifact.path), **artifact.summary}
