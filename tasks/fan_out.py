"""A stage for many values on a Ray cluster: the work leaves this process, what tracks and judges it stays.

What is sent are arguments that can be pickled: settings, handles to artifacts, and the place of the store, which every
machine of the cluster has to see under the same path, as well as the photos. A worker runs the stage as any process
does, under its lock, and publishes its artifact. MLflow and the run's records are written here, from what it published.
"""

import contextlib
import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import Task, get_run_logger, task
from prefect.task_runners import TaskRunner

from lewis_core.artifacts import PROVENANCE, ArtifactRef, ArtifactStore
from lewis_core.config.pipeline import RunConfig
from lewis_core.errors import ConfigError
from lewis_core.records import Record
from lewis_core.stages import Stage, run_stage, stage_key
from tasks.stage import StageCall, StageIdentity, docstring, runtime_values, short, title, to_json, track_result

if TYPE_CHECKING:
    from tasks.run import PipelineRun

_LOCAL_CLUSTER = {"include_dashboard": False, "object_store_memory": 100_000_000}
"""Nothing large is sent, so the least memory that Ray accepts would do."""


class Place(Record):
    """Where a worker finds and leaves things."""

    label: str
    """What tells this call from others of the same stage."""
    store: Path
    """Root of the artifact store."""
    values: dict[str, Any]
    """Folders and device, as JSON."""


@functools.cache
def remote_task(stage: Stage) -> Task[..., Any]:
    """Make the Prefect task that a worker runs; cached like the stage's other task."""

    @task(
        name=stage.name,
        description=f"{docstring(stage)}\n\n`{stage.function}`, on Ray",
        tags=["ray"],
        task_run_name="{place.label}",
        cache_policy=StageIdentity(stage=stage),
        persist_result=True,
        result_serializer="json",
    )
    def perform(arguments: dict[str, object], place: Place) -> ArtifactRef:
        ref = run_stage(stage, ArtifactStore(place.store), arguments, place.values)
        get_run_logger().info("%s: %s", place.label, short(ref.summary))
        return ref

    return perform


def map_on_ray(
    run: "PipelineRun[Any]", stage: Stage, labels: Sequence[str], calls: Sequence[Mapping[str, object]]
) -> list[ArtifactRef]:
    """Run a stage for each set of arguments; what is there already is not sent.

    Args:
        run: The run it belongs to.
        stage: Which; it asks no model service.
        labels: What tells the calls apart.
        calls: Their arguments.

    Returns:
        Handles, in the order of ``calls``.

    Raises:
        LewisError: Whatever ended a call.
        ConfigError: If Ray is not installed, or the cluster cannot be reached.
    """
    found = [run.find(stage, **call) for call in calls]
    missing = [index for index, ref in enumerate(found) if ref is None]
    if missing:
        task_of_stage = remote_task(stage).with_options(
            result_storage=run.results_dir, refresh_cache=stage.name in run.config.run.force
        )
        places = [
            Place(
                label=title(stage, labels[index]),
                store=run.store.root,
                values=to_json(runtime_values(StageCall(run, labels[index]))),
            )
            for index in missing
        ]
        with open_runner(run.config.run) as runner:
            parameters = {"arguments": [dict(calls[index]) for index in missing], "place": places}
            made = runner.map(task_of_stage, parameters).result()
        for index, place, ref in zip(missing, places, made, strict=True):
            found[index] = ref
            _record(run, stage, place.label, calls[index], ref)
    return [ref for ref in found if ref is not None]


def _record(
    run: "PipelineRun[Any]", stage: Stage, name: str, arguments: Mapping[str, object], ref: ArtifactRef
) -> None:
    """Track what a worker has computed."""
    wall_s = float(json.loads((ref.path / PROVENANCE).read_text(encoding="utf-8"))["wall_s"])
    tags = {"stage": stage.name, "label": name, "stage_key": stage_key(stage, arguments), "ran_on": "ray"}
    with run.tracker.stage(name, tags) as tracked:
        track_result(tracked, stage, arguments, ref, wall_s)
    run.computed(name, wall_s, tracked.key)
    run.mirror.push(ref)


@contextlib.contextmanager
def open_runner(config: RunConfig) -> Iterator[TaskRunner[Any]]:
    """Connect to the cluster that the settings name, or start one on this machine for as long as it is needed.

    Raises:
        ConfigError: If Ray is not installed, or the cluster cannot be reached.
    """
    try:
        from prefect_ray import RayTaskRunner
    except ImportError as error:
        raise ConfigError('run.fan_out = "ray" needs the extra "ray": pip install "lewis[ray]"') from error
    address = config.ray_address
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    with contextlib.ExitStack() as stack:
        runner = RayTaskRunner(address=address, init_kwargs={} if address else dict(_LOCAL_CLUSTER))
        try:
            stack.enter_context(runner)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            where = f"the Ray cluster at {address} cannot be reached" if address else "Ray cannot be started"
            raise ConfigError(f"run.fan_out = 'ray': {where}: {error}") from error
        yield runner
