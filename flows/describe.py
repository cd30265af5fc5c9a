"""Speakers → descriptions of the held-out concepts."""

from prefect import flow

from flows import steps
from lewis_core.config.pipeline import PipelineConfig
from lewis_core.records import JsonObject
from tasks.hooks import HOOKS
from tasks.run import pipeline_run


@flow(name="describe", **HOOKS)
def describe(config: PipelineConfig) -> JsonObject:
    """Let the base, the trained speaker (if these settings were trained) and others describe held-out concepts."""
    with pipeline_run(config, "describe") as run:
        photos = steps.read_photos(run)
        who = steps.speakers(run, steps.find_trained(run, photos))
        databases = steps.describe(run, photos, who)
        paths = {speaker.name: str(database.path) for speaker, database in zip(who, databases, strict=True)}
        return {"databases": paths, "mlflow_run_id": run.tracker.run_id, **run.facts()}
