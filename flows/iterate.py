"""Rounds of training: the speaker against the listener, then the listener, then the speaker against the new one."""

from prefect import flow

from flows import steps
from flows.rounds import check_rounds, listener_config, play_rounds, table
from lewis_core.config.pipeline import PipelineConfig
from lewis_core.records import JsonObject
from tasks.hooks import HOOKS
from tasks.run import pipeline_run


@flow(name="iterate", **HOOKS)
def iterate(config: PipelineConfig) -> JsonObject:
    """Train speaker and listener in turn, ``iterate.rounds`` times."""
    with pipeline_run(config, "iterate") as run:
        listener_config(run)
        check_rounds(run.config)
        rounds = play_rounds(run, steps.read_photos(run))
        rows = table(rounds)
        run.tracker.parent().table("rounds", rows)
        return {"rounds": rows, **run.facts()}
