"""One Prefect task for every stage of :mod:`lewis_core.pipeline`.

The cache key is the stage's own identity (settings, content of its inputs, source), results are handles to artifacts
as JSON, and a handle whose artifact is gone or was changed is a cache miss. Retries are kept for what a retry can
help: a model service that went away, which is started again first.
"""

import ast
import contextlib
import contextvars
import functools
import json
import os
import re
import signal
import sys
import textwrap
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import Task, get_run_logger, task
from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext
from pydantic import BaseModel

from lewis_core.artifacts import ArtifactRef
from lewis_core.config.base import Runtime
from lewis_core.errors import KilledError, ListenerUnavailableError, ProcessError
from lewis_core.records import JsonObject
from lewis_core.stages import Stage, find_result, module_file, run_stage, stage_key
from lewis_core.threads import WAITING
from tasks.events import Gauged, StageEvents
from tasks.gpus import Kind, cuda_environment
from tasks.launch import EXIT_LISTENER_LOST, LaunchSpec
from tasks.policy import can_retry, grace_of, policy_of, timeout_of, training_of
from tasks.processes import TIMED_OUT, run_process
from tasks.replicas import Service
from tasks.training_launch import (
    RENDEZVOUS,
    Announcement,
    Machine,
    accelerate_command,
    announce,
    launcher_environment,
    this_machine,
)
from tasks.turns import try_lock, turn

if TYPE_CHECKING:
    from tasks.run import PipelineRun
    from tasks.tracking import StageTracker

KILLED = 128 + signal.SIGKILL
"""Exit status of a process that was killed, also before it could say that it has begun."""
LAUNCHED = re.compile(r"^subprocess\.CalledProcessError: .* died with <Signals\.\w+: (\d+)>\.$")
"""How ``accelerate launch`` says that a signal ended its process."""


@dataclass
class StageCall:
    """What a stage's task needs beside the arguments that identify the stage."""

    run: "PipelineRun[Any]"
    label: str = ""
    """What tells it from other calls of the same stage, e.g. a category or a speaker."""
    service: Service | None = None
    """The model that it asks."""
    held_out: Service | None = None
    """A second model, which only measures."""


class Opaque:
    """Carries a value through Prefect, which looks into every parameter for results of other tasks."""

    def __init__(self, call: StageCall) -> None:
        self.call = call


@dataclass(kw_only=True)
class StageIdentity(CachePolicy):
    """Cache key of a stage: its own identity, whatever process or day it is asked in."""

    stage: Stage

    def compute_key(
        self, task_ctx: TaskRunContext, inputs: dict[str, Any], flow_parameters: dict[str, Any], **kwargs: Any
    ) -> str:
        """Combine the stage's name and identity."""
        return f"{self.stage.name}-{stage_key(self.stage, inputs['arguments'])}"


def title(stage: Stage, label: str) -> str:
    """Stage and what this call of it is about."""
    return f"{stage.name} {label}".strip()


def docstring(stage: Stage) -> str:
    """First paragraph of the docstring of the stage's function, read without importing it."""
    source = module_file(stage.module)
    if source is None:
        return ""
    name = stage.function.partition(":")[2]
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return (ast.get_docstring(node) or "").partition("\n\n")[0]
    return ""


@functools.cache
def stage_task(stage: Stage) -> Task[..., ArtifactRef]:
    """Make the Prefect task of a stage."""
    policy = policy_of(stage)

    def name_of_call(parameters: dict[str, Any]) -> str:
        return f"{stage.name} {parameters['opaque'].call.label}".strip()

    @task(
        name=stage.name,
        description=f"{docstring(stage)}\n\n`{stage.function}`",
        tags=policy.tags,
        task_run_name=name_of_call,  # type: ignore[arg-type] # Prefect's protocol wants a class method as well
        cache_policy=StageIdentity(stage=stage),
        persist_result=True,
        result_serializer="json",
        retries=len(policy.retry_delays_s),
        retry_delay_seconds=list(policy.retry_delays_s) or None,
        retry_condition_fn=can_retry if policy.retry_delays_s else None,
    )
    def perform(arguments: dict[str, object], opaque: Opaque) -> ArtifactRef:
        return perform_stage(stage, arguments, opaque.call)

    return perform


def perform_stage(stage: Stage, arguments: Mapping[str, object], call: StageCall) -> ArtifactRef:
    """Run a stage, in this process or in one of its own, tracked and timed.

    Args:
        stage: What to run.
        arguments: What identifies it.
        call: The run it belongs to, its label, the model service it asks.

    Returns:
        Handle to its artifact.

    Raises:
        LewisError: Whatever ended the stage.
    """
    run, name = call.run, title(stage, call.label)
    lock = run.store.root / "locks" / f"turn-{stage.name}-{stage_key(stage, arguments)}.lock"
    while True:
        with turn(lock, name):  # another run may be at it: wait until it is done
            found = run.find(stage, **arguments)
        if found is not None:
            get_run_logger().info("%s: nothing to do, %s is there", name, found.path)
            return found
        # Whoever has the turn has its GPUs and its service already, so nobody waits for somebody who waits.
        kind: Kind = "training" if training_of(stage, arguments) else "stage"
        with run.gpus.lease(policy_of(stage).num_gpus(arguments), name, kind) as gpus:
            values = runtime_values(call)
            with try_lock(lock) or contextlib.nullcontext() as is_mine:
                if is_mine is not None:
                    return compute(stage, arguments, call, values, cuda_environment(gpus))


def compute(
    stage: Stage,
    arguments: Mapping[str, object],
    call: StageCall,
    values: Mapping[str, object],
    environment: Mapping[str, str],
) -> ArtifactRef:
    """Run a stage that nobody else runs at the same time, in this process or in one of its own, tracked and timed."""
    run, name, log = call.run, title(stage, call.label), get_run_logger()
    started = time.monotonic()
    tags = {"stage": stage.name, "label": call.label, "stage_key": stage_key(stage, arguments)}
    with run.tracker.stage(name, tags) as tracked:
        events = StageEvents(name, log, tracked, Gauged(run.gauges, stage.name, call.label))
        if stage.isolated:
            ref = run_isolated(stage, arguments, values, run, events, environment)
        else:
            ref = run_stage(stage, run.store, arguments, values, events)
        events.finish(ref.path)
        wall_s = time.monotonic() - started
        track_result(tracked, stage, arguments, ref, wall_s)
    run.computed(name, wall_s, tracked.key)
    run.mirror.push(ref)
    run.gauges.finished(stage.name, call.label, wall_s)
    log.info("%s: done in %.1f s: %s", name, wall_s, short(ref.summary))
    return ref


def runtime_values(call: StageCall) -> dict[str, object]:
    """Folders, device and service of this run; the service is started if it does not run."""
    values: dict[str, object] = {"runtime": call.run.config.run.runtime}
    if (shared := call.run.config.run.cache_dir) is not None:
        values["cache_dir"] = shared.expanduser().absolute()
    if call.run.data_root is not None:
        values["data_root"] = call.run.data_root
    if call.service is not None:
        values["service_url"] = call.service.ensure()
    if call.held_out is not None:
        values["held_out_url"] = call.held_out.ensure()
    return values


def track_result(
    tracked: "StageTracker", stage: Stage, arguments: Mapping[str, object], ref: ArtifactRef, wall_s: float
) -> None:
    """Record settings, counts and time of a finished stage."""
    tracked.params(to_json({"stage": stage.name, **arguments}))
    counts = {key: float(value) for key, value in ref.summary.items() if isinstance(value, int | float)}
    tracked.metrics({**counts, "wall_s": wall_s})
    tracked.tags({"artifact": str(ref.path), "digest": ref.digest})


def run_isolated(
    stage: Stage,
    arguments: Mapping[str, object],
    values: Mapping[str, object],
    run: "PipelineRun[Any]",
    events: StageEvents,
    environment: Mapping[str, str],
) -> ArtifactRef:
    """Run a stage in a guarded child process.

    Raises:
        LewisError: What ended the stage, as the child reported it.
        ProcessError: If the child ended without saying why, or took too long (``KilledError``: it was killed).
    """
    key = stage_key(stage, arguments)
    log = run.log_dir / f"{stage.name}-{key}.log"
    spec_file = run.log_dir / f"{stage.name}-{key}.json"
    spec = LaunchSpec(
        stage=stage.name,
        function=stage.function,
        asks=stage.asks,
        key=key,
        store=run.store.root,
        arguments=to_json(arguments),
        runtime=to_json(values),
        run_id=run.id,
        log_format=run.config.run.log_format,
    )
    spec_file.write_text(spec.model_dump_json(indent=1), encoding="utf-8")
    context, grace_s = contextvars.copy_context(), grace_of(stage, run.config.run)
    try:
        with announced(stage, arguments, run, spec_file) as machine:
            run_process(
                stage.name,
                launch_command(stage, arguments, run.config.run.runtime, spec_file, machine),
                log,
                on_line=lambda line: context.run(events.handle_line, line),
                timeout_s=timeout_of(stage, run.config.run),
                env={**thread_limits(run.config.run.runtime), **launcher_environment(grace_s), **environment},
                grace_s=grace_s,
            )
    except ProcessError as error:
        if events.failure is not None:
            raise events.failure from error
        if error.code == EXIT_LISTENER_LOST:
            raise ListenerUnavailableError(f"{stage.name} lost its model service; its log is {log}") from error
        has_begun = events.has_started or error.code == KILLED
        was_killed = has_begun and not events.has_crashed and error.code != TIMED_OUT
        kind = KilledError if was_killed else ProcessError
        code, tail = without_launcher(error.code, error.tail)
        raise kind(error.name, code, [*tail, f"(log: {log})"]) from error
    found = find_result(stage, run.store, arguments)
    if found is None:
        raise ProcessError(stage.name, 0, [f"it ended well but published nothing under {key}", f"(log: {log})"])
    return found


def without_launcher(code: int, tail: Sequence[str]) -> tuple[int, Sequence[str]]:
    """Exit status and last lines of a process itself, not of ``accelerate launch``, which ends with a traceback."""
    ended = LAUNCHED.search(tail[-1]) if tail else None
    if ended is None:
        return code, tail
    begin = max((at for at, line in enumerate(tail) if line.startswith("Traceback")), default=len(tail) - 1)
    return 128 + int(ended[1]), tail[:begin]


def launch_command(
    stage: Stage, arguments: Mapping[str, object], runtime: Runtime, spec_file: Path, machine: Machine | None = None
) -> list[str]:
    """Command line of a stage's child process; training goes through ``accelerate launch``."""
    config, entry = training_of(stage, arguments), ["tasks.launch", str(spec_file)]
    if config is None:
        return [sys.executable, "-m", *entry]
    return accelerate_command(config, runtime, entry, machine or Machine(), has_gpu=has_gpu(runtime))


@contextlib.contextmanager
def announced(stage: Stage, arguments: Mapping[str, object], run: "PipelineRun[Any]", spec: Path) -> Iterator[Machine]:
    """Tell the other machines of a training that it starts here; there are none for other stages.

    Raises:
        ConfigError: If there are several machines and nothing says where this one can be reached.
    """
    config = training_of(stage, arguments)
    machines = config.distributed.num_machines if config else 1
    machine = this_machine(os.environ, machines)
    if machines == 1:
        yield machine
        return
    threads = run.config.run.runtime.torch_threads
    grace_s = grace_of(stage, run.config.run)
    told = Announcement(stage.name, str(spec), machine.address, machine.port, threads, uuid.uuid4().hex, grace_s)
    file = announce(run.log_dir / RENDEZVOUS, told)
    try:
        yield machine
    finally:
        file.unlink(missing_ok=True)


def has_gpu(runtime: Runtime) -> bool:
    """Whether stages run on a GPU, found out without loading torch."""
    if runtime.device != "auto":
        return runtime.device == "cuda"
    return Path("/dev/nvidiactl").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")


def thread_limits(runtime: Runtime) -> dict[str, str]:
    """Environment of numeric libraries: how many threads there are, and how they wait."""
    return WAITING if runtime.torch_threads is None else {**WAITING, "OMP_NUM_THREADS": str(runtime.torch_threads)}


def to_json(values: Mapping[str, object]) -> JsonObject:
    """JSON form of arguments: settings and handles become objects, paths become text."""

    def convert(value: object) -> object:
        if isinstance(value, BaseModel):
            return value.model_dump(mode="json")
        return str(value)

    plain: JsonObject = json.loads(json.dumps(dict(values), default=convert))
    return plain


def counts_nothing(value: object) -> bool:
    """Whether a value is a count of nothing; a measured 0.0 is something."""
    return type(value) is int and value == 0


def short(summary: Mapping[str, object]) -> str:
    """Counts of a stage on one line; digests and what there is none of are left to its manifest."""
    counts = [
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in summary.items()
        if not (
            isinstance(value, dict | list) or key.endswith("sha256") or value in (None, "") or counts_nothing(value)
        )
    ]
    return textwrap.shorten(", ".join(counts), 400, placeholder=" …") or "its numbers are in its folder"
