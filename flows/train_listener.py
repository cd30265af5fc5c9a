"""Photos → a trained listener."""

from prefect import flow

from flows import steps, training
from flows.rounds import listener_config
from flows.rounds import train_listener as train
from lewis_core.config.pipeline import PipelineConfig
from lewis_core.records import JsonObject
from tasks.hooks import HOOKS
from tasks.run import pipeline_run


@flow(name="train-listener", **HOOKS)
def train_listener(config: PipelineConfig) -> JsonObject:
    """Train the listener on yes-or-no questions; prepares the data first unless that was done."""
    with pipeline_run(config, "train-listener") as run:
        settings = listener_config(run)
        photos = steps.read_photos(run)
        games = steps.training_games(run, photos)
        adapter = train(run, photos, games, settings, run.config.training.model)
        return {
            "adapter": str(steps.trained_folder(adapter)),
            "name": training.name_of(run, settings),
            **adapter.summary,
            **run.facts(),
        }
