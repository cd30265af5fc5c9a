"""From photos to a report that says whether the speaker became better."""

from prefect import flow

from flows import steps, training
from flows.analyse import analysis_paths, look_closer
from flows.summary import pipeline_summary, publish
from lewis_core.config.pipeline import PipelineConfig
from lewis_core.records import JsonObject
from tasks.hooks import HOOKS
from tasks.run import pipeline_run


@flow(name="full-pipeline", **HOOKS)
def full_pipeline(config: PipelineConfig) -> JsonObject:
    """Play the whole Lewis game: photos, games, training against the listener, descriptions, evaluations, report."""
    with pipeline_run(config, "full-pipeline") as run:
        photos = steps.read_photos(run)
        adapter = training.train_speaker(run, steps.build_training_data(run, photos))
        who = steps.speakers(run, adapter)
        evaluated = steps.evaluate(run, photos, who, steps.describe(run, photos, who))
        report = steps.build_report(run, photos, adapter, evaluated, steps.compare(run, evaluated))
        analyses = look_closer(run, photos, evaluated)
        publish(run, report, evaluated)
        return {**pipeline_summary(run, report, evaluated), **analysis_paths(analyses)}
