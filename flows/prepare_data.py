"""Photos → the data set that the speaker trains on."""

from prefect import flow

from flows import steps
from lewis_core.config.pipeline import PrepareDataConfig
from lewis_core.records import JsonObject
from tasks.hooks import HOOKS
from tasks.run import pipeline_run


@flow(name="prepare-data", **HOOKS)
def prepare_data(config: PrepareDataConfig) -> JsonObject:
    """Turn photos into a catalog, a split of its concepts, CLIP embeddings, games and the training data set."""
    with pipeline_run(config, "prepare-data") as run:
        photos = steps.read_photos(run)
        dataset = steps.build_training_data(run, photos)
        return {"catalog": str(photos.catalog.path), "dataset": str(dataset.path), **run.facts()}
