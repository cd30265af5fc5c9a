"""One run of the pipeline: its settings, store, services and tracking, and what was computed in it."""

import contextlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Generic, cast

from prefect import Task
from prefect import runtime as prefect_runtime
from prefect.futures import PrefectFuture
from typing_extensions import TypeVar

from lewis_core.artifacts import ArtifactRef, ArtifactStore, digest_json
from lewis_core.config.base import FrozenConfig, ModelRef, Runtime
from lewis_core.config.pipeline import PipelineConfig, RunSettings
from lewis_core.correlation import run_id, set_run
from lewis_core.errors import ConfigError
from lewis_core.models.files import model_identity
from lewis_core.stages import Stage, find_result, stage_key
from tasks.fan_out import map_on_ray
from tasks.gpus import GpuPool
from tasks.links import prefect_tags, show_mlflow_run
from tasks.logs import arrange_logs, run_log
from tasks.mirror import Mirror
from tasks.models import resolve_models
from tasks.policy import policy_of
from tasks.processes import process_scope
from tasks.prometheus import RunGauges
from tasks.replicas import ExternalService, Replicas, Service
from tasks.services import ModelService, listener_command, told_beside_training
from tasks.stage import Opaque, StageCall, has_gpu, stage_task, title
from tasks.tracking import Tracker, tracking_uri
from tasks.training_launch import RENDEZVOUS, dismiss
from tasks.turns import turn

logger = logging.getLogger(__name__)
ConfigT = TypeVar("ConfigT", bound=RunSettings, default=PipelineConfig)
"""Settings of a flow."""


class PipelineRun(Generic[ConfigT]):
    """What the steps of a flow share.

    Args:
        config: Settings of the run.
        tracker: MLflow.
        gauges: Prometheus.
    """

    def __init__(self, config: ConfigT, tracker: Tracker, gauges: RunGauges) -> None:
        self.config, self.tracker, self.gauges = config, tracker, gauges
        self.id = run_id()
        """The flow run's id: in log lines, requests and metrics of everything that this run starts."""
        self.work_dir = work_dir = config.run.work_dir.expanduser().absolute()
        self.gpus = GpuPool(config.run.gpus, has_gpu(config.run.runtime))
        self.store = ArtifactStore(work_dir / "store")
        self.mirror = Mirror(config.run.storage, self.store)
        self.log_dir = work_dir / "logs"
        self.results_dir = work_dir / "results"
        self.results_dir.mkdir(parents=True, exist_ok=True)
        self.data_root: Path | None = None
        """Folder that image paths are relative to; set once the photos are found."""
        self.started = time.monotonic()
        self.wall_s: dict[str, float] = {}
        """Seconds of each computed stage, by title."""
        self.requested: list[str] = []
        """Titles of all stages asked for, in order."""
        self._run_keys: dict[str, str] = {}
        self._services: dict[str, Service] = {}
        self._forced: set[str] = set()
        self._lock = threading.Lock()

    def stage(
        self,
        stage: Stage,
        /,
        label: str = "",
        service: Service | None = None,
        held_out: Service | None = None,
        **arguments: object,
    ) -> ArtifactRef:
        """Run a stage as a Prefect task, or take what is there.

        Args:
            stage: Which.
            label: What tells this call from others of the same stage.
            service: The model that it asks.
            held_out: A second model, which only measures.
            arguments: What identifies it.

        Returns:
            Handle to its artifact.
        """
        return self._submit(stage, arguments, StageCall(self, label, service, held_out)).result()

    def submit(
        self, stage: Stage, /, label: str = "", service: Service | None = None, **arguments: object
    ) -> "PrefectFuture[ArtifactRef]":
        """Like :meth:`stage`, in a thread of the task runner."""
        return self._submit(stage, arguments, StageCall(self, label, service))

    def _submit(self, stage: Stage, arguments: dict[str, object], call: StageCall) -> "PrefectFuture[ArtifactRef]":
        prepared = self._prepare(stage, call.label, arguments)
        return prepared.submit(arguments, Opaque(call))

    def map(self, stage: Stage, /, over: str, values: Sequence[str], **arguments: object) -> list[ArtifactRef]:
        """Run a stage once for each value of one argument, on threads or on a Ray cluster (``run.fan_out``).

        Args:
            stage: Which.
            over: Name of the argument that varies; its value is the label.
            values: Its values.
            arguments: The other arguments.

        Returns:
            Handles, in the order of ``values``.
        """
        calls = [{over: value, **arguments} for value in values]
        task = stage_task(stage)
        for value, call in zip(values, calls, strict=True):
            task = self._prepare(stage, value, call)
        if self.config.run.fan_out == "ray":
            return map_on_ray(self, stage, values, calls)
        opaques = [Opaque(StageCall(self, value)) for value in values]
        return list(task.map(calls, opaques).result()) if calls else []

    def find(self, stage: Stage, /, **arguments: object) -> ArtifactRef | None:
        """Return a stage's artifact if it is there, or in its second home, without running anything."""
        found = find_result(stage, self.store, arguments)
        return found if found is not None else self.mirror.fetch(stage.name, stage_key(stage, arguments))

    def _prepare(self, stage: Stage, label: str, arguments: Mapping[str, object]) -> "Task[..., ArtifactRef]":
        name, key = title(stage, label), stage_key(stage, arguments)
        is_forced = stage.name in self.config.run.force
        with self._lock:
            self.requested.append(name)
            if is_forced and key not in self._forced:
                self._forced.add(key)
                self.store.discard(stage.name, key)
        return stage_task(stage).with_options(result_storage=self.results_dir, refresh_cache=is_forced)

    def computed(self, name: str, wall_s: float, run_key: str) -> None:
        """Note that a stage was computed in this run."""
        with self._lock:
            self.wall_s[name] = round(wall_s, 2)
            self._run_keys[name] = run_key

    @property
    def cached(self) -> list[str]:
        """Titles of stages whose result was there."""
        return [name for name in self.requested if name not in self.wall_s]

    def tracking_key(self, stage: Stage, label: str = "") -> str | None:
        """The tracker's name for the run of a stage computed in this run."""
        return self._run_keys.get(title(stage, label))

    def service(self, role: str, ref: ModelRef) -> Service:
        """Offer a model behind HTTP; the same model is one service, whatever roles it has.

        It starts when a stage first needs it and ends with the run, or when it is stopped; with ``run.services`` the
        role is served by others.
        """
        if self.data_root is None:
            raise ConfigError("a model service needs the photos' folder: find the photos first")
        known = digest_json(model_identity(ref))
        with self._lock:
            if known not in self._services:
                self._services[known] = self._new_service(role, ref, self.data_root)
            return self._services[known]

    def _new_service(self, role: str, ref: ModelRef, root: Path) -> Service:
        config = self.config.run
        if role in config.services:
            return ExternalService(role, config.services[role], ref, config.listener_start_timeout_s)
        told = ["--run-id", self.id, "--log-format", config.log_format]
        names = [role, *(f"{role}-{number}" for number in range(2, config.service_replicas + 1))]
        services = [
            ModelService(
                name,
                lambda port: [*listener_command(ref, root, config.runtime, port), *told],
                self.log_dir / f"service-{name}.log",
                config.listener_start_timeout_s,
                self.gpus,
                told_beside_training(config.runtime),
            )
            for name in names
        ]
        return services[0] if len(services) == 1 else Replicas(services)

    def beside(self, stage: Stage, arguments: Mapping[str, object], asked: Mapping[str, ModelRef]) -> list[ModelRef]:
        """Models whose services will share a GPU with a stage: those for which no other one is left.

        Args:
            stage: Which.
            arguments: What identifies it.
            asked: The models that it asks, by role.
        """
        started = dict.fromkeys(ref for role, ref in asked.items() if role not in self.config.run.services)
        refs = [ref for ref in started for _ in range(self.config.run.service_replicas)]
        return refs[len(refs) - self.gpus.sharing(policy_of(stage).num_gpus(arguments), len(refs)) :]

    def stop_services(self, keep: Sequence[ModelRef] = ()) -> None:
        """End all services but those of some models, so that their memory is free."""
        kept = {digest_json(model_identity(ref)) for ref in keep}
        for known, service in list(self._services.items()):
            if known not in kept:
                service.stop()

    def name_result(self, name: str, folder: Path) -> Path:
        """Let people find a result by its name: a link in ``trained`` of the work folder, which the newest one gets."""
        link = self.work_dir / "trained" / name
        part = link.with_name(f".{name}-{uuid.uuid4().hex[:8]}")
        try:
            link.parent.mkdir(exist_ok=True)
            part.symlink_to(os.path.relpath(folder, link.parent))
            part.replace(link)
        except OSError as error:
            logger.warning("%s cannot be linked to %s: %s", link, folder, error)
        return link

    @contextlib.contextmanager
    def exclusively(self, what: str) -> Iterator[None]:
        """Do something that no other run of this work folder does at the same time."""
        with turn(self.store.root / "locks" / f"{what}.lock", what):
            yield

    def facts(self) -> dict[str, object]:
        """Time and cache of the run, for reports."""
        return {
            "wall_s": {**self.wall_s, "total": round(time.monotonic() - self.started, 2)},
            "cache_hits": len(self.cached),
            "computed": len(self.wall_s),
        }


def decide_precision(settings: FrozenConfig, runtime: Runtime) -> FrozenConfig:
    """Replace every model's precision ``auto`` by what it is here, so that identities say what was computed.

    Args:
        settings: A model, or settings that hold models.
        runtime: The device that models run on.

    Returns:
        The settings; models on a GPU run in bfloat16, others in float32, unless told otherwise.
    """

    def decide(value: object) -> object:
        if isinstance(value, tuple):
            return tuple(map(decide, value))
        return decide_precision(value, runtime) if isinstance(value, FrozenConfig) else value

    if isinstance(settings, ModelRef):
        found = "bfloat16" if has_gpu(runtime) else "float32"
        return settings.model_copy(update={"dtype": found}) if settings.dtype == "auto" else settings
    return settings.model_copy(update={name: decide(getattr(settings, name)) for name in type(settings).model_fields})


@contextlib.contextmanager
def pipeline_run(config: ConfigT, flow: str) -> Iterator[PipelineRun[ConfigT]]:
    """Open a run for the body of a flow; whatever ends the body ends every process and closes the MLflow run.

    Args:
        config: Settings; precision ``auto`` is decided here.
        flow: Name of the flow.

    Yields:
        The run.
    """
    arrange_logs()
    set_run(str(prefect_runtime.flow_run.id or uuid.uuid4()), flow=flow)
    with run_log(config.run.work_dir.expanduser().absolute() / "logs", run_id(), config.run.log_format):
        run, status = open_run(config, flow), "KILLED"
        try:
            with process_scope():
                yield run
            status = "FINISHED"
            dismiss(run.log_dir / RENDEZVOUS, run.id)
        except Exception:
            status = "FAILED"
            raise
        finally:
            close(run, status)


def open_run(config: ConfigT, flow: str) -> PipelineRun[ConfigT]:
    """Fetch models, decide what the settings leave open, and tell MLflow that a run begins."""
    work_dir = config.run.work_dir.expanduser().absolute()
    config = resolve_models(config, tracking_uri(config.run.tracking, work_dir), work_dir / "models")
    config = cast(ConfigT, decide_precision(config, config.run.runtime))
    tags = {
        "lewis.flow": flow,
        "lewis.settings_digest": digest_json(config.model_dump(mode="json", exclude={"run"})),
        "lewis.run_id": run_id(),
        **prefect_tags(),
    }
    name = config.run.name
    tracker = Tracker(config.run.tracking, work_dir, f"{name} {flow}", tags, name, show_mlflow_run)
    tracker.parent().params(config.model_dump(mode="json"))
    return PipelineRun(config, tracker, RunGauges(config.run.monitoring, name, run_id(), flow))


def close(run: PipelineRun[ConfigT], status: str) -> None:
    """Record what was computed and what was there already, and end the MLflow run."""
    parent = run.tracker.parent()
    parent.tags({f"cached.{number:02d}": name for number, name in enumerate(run.cached)})
    parent.metrics({f"wall_s/{name.replace(' ', '/')}": wall_s for name, wall_s in run.wall_s.items()})
    parent.metrics({"cache_hits": len(run.cached), "computed": len(run.wall_s)})
    run.mirror.close()
    run.tracker.end(status)
    run.gauges.close()
