"""MLflow: one run per flow run, one nested run per computed stage.

Runs are named explicitly in every call (the fluent API's active run is per thread). An outage of the tracking server
never ends a run: it is logged once, and every event is in a JSONL file anyway.
"""

import contextlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lewis_core.artifacts import ArtifactRef
from lewis_core.config.pipeline import TrackingConfig

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)
PARENT_TAG = "mlflow.parentRunId"
PARAM_BATCH, PARAM_LENGTH = 100, 6000


def tracking_uri(config: TrackingConfig, work_dir: Path) -> str:
    """Address of the tracking store: from the settings, else MLFLOW_TRACKING_URI, else sqlite in the work folder."""
    return config.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{work_dir.absolute()}/mlflow.db"


def flatten(value: object, prefix: str = "") -> dict[str, str]:
    """Flatten nested settings: ``{"a": {"b": 1}}`` becomes ``{"a.b": "1"}``."""
    if isinstance(value, Mapping) and value:
        return {
            name: text
            for key, item in value.items()
            for name, text in flatten(item, f"{prefix}.{key}" if prefix else str(key)).items()
        }
    return {prefix: value if isinstance(value, str) else json.dumps(value, default=str)}


class Tracker:
    """Connection to MLflow for one flow run.

    Args:
        config: Where it is.
        work_dir: Folder for the embedded database and the JSONL file of events.
        name: Name of the flow run.
        tags: Tags of the parent run.
    """

    def __init__(self, config: TrackingConfig, work_dir: Path, name: str, tags: Mapping[str, str]) -> None:
        self._config, self._lock = config, threading.RLock()
        self._client: MlflowClient | None = None
        self._experiment = ""
        self.run_id: str | None = None
        self.uri = tracking_uri(config, work_dir)
        (work_dir / "logs").mkdir(parents=True, exist_ok=True)
        self._events = work_dir / "logs" / f"events-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.jsonl"
        self._attempt(self._connect, work_dir, name, dict(tags))

    def _connect(self, work_dir: Path, name: str, tags: dict[str, str]) -> None:
        import mlflow
        from mlflow import MlflowClient

        mlflow.set_tracking_uri(self.uri)  # the registry resolves models:/ addresses through the global one
        self._client = MlflowClient(self.uri)
        found = self._client.get_experiment_by_name(self._config.experiment)
        if found is None:
            folder = (work_dir / "mlflow-artifacts").absolute().as_uri() if self.uri.startswith("sqlite") else None
            self._experiment = self._client.create_experiment(self._config.experiment, artifact_location=folder)
        else:
            self._experiment = found.experiment_id
        self.run_id = self._client.create_run(self._experiment, tags=tags, run_name=name).info.run_id

    def _attempt(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call MLflow; an outage is logged and the run goes on without tracking."""
        with self._lock:
            try:
                return call(*arguments, **named)
            except Exception as error:  # noqa: BLE001 - whatever the tracking server does must not end a run
                logger.warning(
                    "MLflow at %s failed (%s: %s); events are in %s",
                    self.uri,
                    type(error).__name__,
                    str(error).splitlines()[0][:300] if str(error) else "",
                    self._events,
                )
                return None

    @contextlib.contextmanager
    def stage(self, name: str, tags: Mapping[str, str]) -> Iterator["StageTracker"]:
        """Track a computed stage as a nested run; it ends as finished, failed or killed like the body."""
        run_id = self._start_child(name, tags)
        status = "KILLED"
        try:
            yield StageTracker(self, run_id, name)
            status = "FINISHED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            if run_id:
                self.call("set_terminated", run_id, status)

    def _start_child(self, name: str, tags: Mapping[str, str]) -> str | None:
        if self.run_id is None:
            return None
        run = self.call("create_run", self._experiment, tags={PARENT_TAG: self.run_id, **tags}, run_name=name)
        return run.info.run_id if run else None

    def call(self, method: str, *arguments: Any, **named: Any) -> Any:
        """Call a method of the MLflow client, if there is one."""
        if self._client is None:
            return None
        return self._attempt(getattr(self._client, method), *arguments, **named)

    def record(self, run: str, event: str, **fields: object) -> None:
        """Append an event to the JSONL file."""
        line = json.dumps({"time": time.time(), "run": run, "event": event, **fields}, default=str)
        with self._lock, self._events.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def end(self, status: str) -> None:
        """End the parent run: ``FINISHED``, ``FAILED`` or ``KILLED``."""
        if self.run_id:
            self.call("set_terminated", self.run_id, status)

    def parent(self) -> "StageTracker":
        """The flow's own run, to log to."""
        return StageTracker(self, self.run_id, "pipeline")

    def register_adapter(self, adapter: ArtifactRef, run_id: str | None, metrics: Mapping[str, float]) -> str | None:
        """Log a trained adapter as a model and register it with the alias ``candidate``.

        An adapter that was registered before (same content) is not registered again.

        Args:
            adapter: The train-speaker artifact.
            run_id: Run that made it, or ``None``.
            metrics: Numbers kept with the model.

        Returns:
            ``name/version``, or ``None`` when nothing is registered.
        """
        if self._config.registered_model is None or self.run_id is None:
            return None
        version: str | None = self._attempt(self._register, adapter, run_id or self.run_id, dict(metrics))
        return version

    def _register(self, adapter: ArtifactRef, run_id: str, metrics: dict[str, float]) -> str:
        client, name = self._client, self._config.registered_model
        if client is None or name is None:
            raise RuntimeError("no connection")
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name, description="LoRA adapters trained with the Lewis game")
        for version in client.search_model_versions(f"name = '{name}'"):
            if version.tags.get("adapter_digest") == adapter.digest:
                return f"{name}/{version.version}"
        tags = {"adapter_digest": adapter.digest, "adapter_key": adapter.key, **manifest_tags(adapter)}
        model = client.create_logged_model(
            self._experiment, name=name, source_run_id=run_id, tags=tags, model_type="lora-adapter"
        )
        client.log_model_artifacts(model.model_id, str(adapter.path / "adapter"))
        client.finalize_logged_model(model.model_id, "READY")
        now = int(time.time() * 1000)
        for key, value in metrics.items():
            client.log_metric(run_id, key, value, timestamp=now, model_id=model.model_id)
        made = client.create_model_version(
            name, source=f"models:/{model.model_id}", run_id=run_id, tags=tags, model_id=model.model_id
        )
        client.set_registered_model_alias(name, "candidate", made.version)
        return f"{name}/{made.version}"


def manifest_tags(adapter: ArtifactRef) -> dict[str, str]:
    """Where an adapter comes from: digests of its data set and of its settings."""
    from lewis_core.artifacts import digest_json

    arguments = adapter.verify().arguments
    return {
        "dataset_digest": str(arguments.get("dataset", {}).get("digest", "")),
        "config_digest": digest_json(arguments.get("config")),
    }


def metric_name(name: str) -> str:
    """A name that MLflow takes: signs other than letters, digits and ``_-. :/``, as folders may have, become ``_``."""
    return re.sub(r"[^\w\-. :/]", "_", name)


class StageTracker:
    """One MLflow run; also writes every event to the tracker's JSONL file."""

    def __init__(self, tracker: Tracker, run_id: str | None, name: str) -> None:
        self._tracker, self.run_id, self._name = tracker, run_id, name

    def _call(self, method: str, *arguments: Any, **named: Any) -> None:
        if self.run_id is not None:
            self._tracker.call(method, self.run_id, *arguments, **named)

    def params(self, params: Mapping[str, object]) -> None:
        """Record settings, flattened."""
        from mlflow.entities import Param

        self._tracker.record(self._name, "params", params=params)
        entries = [Param(key[:250], text[:PARAM_LENGTH]) for key, text in flatten(params).items() if key]
        for start in range(0, len(entries), PARAM_BATCH):
            self._call("log_batch", params=entries[start : start + PARAM_BATCH], synchronous=True)

    def metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record numbers at a step."""
        from mlflow.entities import Metric

        self._tracker.record(self._name, "metrics", metrics=metrics, step=step)
        now = int(time.time() * 1000)
        entries = [Metric(metric_name(key), float(value), now, step or 0) for key, value in metrics.items()]
        self._call("log_batch", metrics=entries, synchronous=True)

    def tags(self, tags: Mapping[str, str]) -> None:
        """Record tags."""
        from mlflow.entities import RunTag

        self._call("log_batch", tags=[RunTag(key, value[:5000]) for key, value in tags.items()], synchronous=True)

    def table(self, name: str, rows: Sequence[Mapping[str, object]], step: int | None = None) -> None:
        """Keep a table; tables of later steps are kept apart, under the step's number."""
        if not rows:
            return
        self._tracker.record(self._name, "table", name=name, rows=list(rows), step=step)
        columns = {key: [row.get(key) for row in rows] for key in rows[0]}
        file = f"tables/{name}.json" if step is None else f"tables/{name}/{step:06d}.json"
        self._call("log_table", columns, file)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a file or a folder."""
        self._tracker.record(self._name, "artifact", path=str(path))
        if path.is_dir():
            self._call("log_artifacts", str(path), folder)
        else:
            self._call("log_artifact", str(path), folder)
