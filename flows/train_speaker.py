"""Photos → a trained speaker."""

from prefect import flow

from flows import steps, training
from lewis_core.config.pipeline import PipelineConfig
from lewis_core.records import JsonObject
from tasks.hooks import HOOKS
from tasks.run import pipeline_run


@flow(name="train-speaker", **HOOKS)
def train_speaker(config: PipelineConfig) -> JsonObject:
    """Train the speaker with the Lewis game; prepares the data first unless that was done."""
    with pipeline_run(config, "train-speaker") as run:
        photos = steps.read_photos(run)
        adapter = training.train_speaker(run, steps.build_training_data(run, photos))
        return {
            "adapter": str(steps.trained_folder(adapter)),
            "name": training.name_of(run, run.config.training),
            "mlflow_run_id": run.tracker.run_id,
            **run.facts(),
        }
