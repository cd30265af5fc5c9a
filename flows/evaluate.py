"""Speakers → what their descriptions are worth."""

from prefect import flow

from flows import steps
from flows.analyse import analysis_paths, look_closer
from flows.summary import pipeline_summary, publish
from lewis_core.config.pipeline import PipelineConfig
from lewis_core.records import JsonObject
from tasks.hooks import HOOKS
from tasks.run import pipeline_run


@flow(name="evaluate", **HOOKS)
def evaluate(config: PipelineConfig) -> JsonObject:
    """Evaluate the base, the trained speaker (if it was trained with these settings) and others; build the report."""
    with pipeline_run(config, "evaluate") as run:
        photos = steps.read_photos(run)
        adapter = steps.find_trained(run, photos)
        who = steps.speakers(run, adapter)
        evaluated = steps.evaluate(run, photos, who, steps.describe(run, photos, who))
        report = steps.build_report(run, photos, adapter, evaluated, steps.compare(run, evaluated))
        analyses = look_closer(run, photos, evaluated)
        publish(run, report, evaluated)
        return {**pipeline_summary(run, report, evaluated), **analysis_paths(analyses)}
