"""From a journal to MLflow: each entry once, in order, and again after an outage where it stopped.

Runs get names of our own in the journal, and MLflow's ids when they are made. An entry that may have been sent already
(the process died between sending and noting it) can be sent again without harm: runs are found by their tag, numbers
and parameters are the same rows, files are written over.
"""

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lewis_core.artifacts import ArtifactRef, digest_json
from lewis_core.models.adapters import adapter_digest
from lewis_core.records import JsonObject
from tasks.journal import Journal, describe

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)
PARENT_TAG, OWN_TAG, TABLES_TAG = "mlflow.parentRunId", "lewis.run_key", "mlflow.loggedArtifacts"
BATCH, METRIC_BATCH = 100, 1000
"""Parameters or tags, and metrics, of one request; MLflow takes no more."""
PARAM_LENGTH, TAG_LENGTH = 6000, 5000
REFUSALS = range(400, 500)
PASSING = (401, 403, 408, 429)
REGISTERED = "lewis.checkpoint.registered"
UNFINISHED = "lewis.unfinished"
"""Tag of a version that has no alias yet, and of which nobody was told."""


def is_refusal(error: Exception) -> bool:
    """Whether sending the same again would fail again; everything else is taken for an outage."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        status: int = error.get_http_status_code()  # type: ignore[no-untyped-call]
        return status in REFUSALS and status not in PASSING
    from lewis_core.errors import LewisError

    return isinstance(error, LewisError | FileNotFoundError | ValueError | TypeError | LookupError)


class Sender:
    """Sends one journal.

    Args:
        journal: What is sent; its first entry says where to.
        header: That entry.
    """

    def __init__(self, journal: Journal, header: JsonObject) -> None:
        self._journal, self._header = journal, header
        self.uri = str(header["uri"])
        self.sent, self.ids = journal.progress()
        self._client: MlflowClient | None = None
        self._experiment = ""
        self._tables: dict[str, list[dict[str, str]]] = {}
        self.refused = 0
        """Entries that MLflow did not take."""

    def connect(self) -> None:
        """Find or make the experiment; raises whatever MLflow raises."""
        if self._client is not None:
            return
        import mlflow
        from mlflow import MlflowClient

        mlflow.set_tracking_uri(self.uri)  # the registry resolves models:/ addresses through the global one
        client = MlflowClient(self.uri)
        name = str(self._header["experiment"])
        found = client.get_experiment_by_name(name)
        if found is None:
            self._experiment = client.create_experiment(name, artifact_location=self._header.get("artifacts"))
        else:
            self._experiment = found.experiment_id
        self._client = client

    def send(self, entry: JsonObject) -> None:
        """Send the next entry and note it; raises whatever MLflow raises in an outage, and then notes nothing."""
        self.connect()
        try:
            getattr(self, f"_send_{entry['event']}", self._ignore)(entry)
        except Exception as error:
            if not is_refusal(error):
                raise
            self.refused += 1
            reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
            logger.warning("MLflow at %s does not take %s: %s", self.uri, describe(entry), reason)
        self.sent += 1
        self._journal.note(self.sent, self.ids)

    @property
    def _mlflow(self) -> "MlflowClient":
        assert self._client is not None
        return self._client

    def url(self, key: str) -> str:
        """Address of a run for a browser; empty unless a server has it."""
        if key not in self.ids or not self.uri.startswith(("http://", "https://")):
            return ""
        page = f"experiments/{self._experiment}/runs/{self.ids[key]}"
        return f"{self.uri.rstrip('/')}/#/{page}?workflowType=machine_learning"  # not the pages for chat traces

    def _ignore(self, entry: JsonObject) -> None:
        """Entries that are only for people."""

    def _send_start(self, entry: JsonObject) -> None:
        key, parent = entry["run"], entry.get("parent")
        tags = {OWN_TAG: key, **entry["tags"]}
        if parent is not None:
            tags[PARENT_TAG] = self.ids[parent]
        known = self._mlflow.search_runs([self._experiment], f"tags.`{OWN_TAG}` = '{key}'", max_results=1)
        if known:
            self.ids[key] = known[0].info.run_id
            return
        started = int(entry["time"] * 1000)
        made = self._mlflow.create_run(self._experiment, start_time=started, tags=tags, run_name=entry["name"])
        self.ids[key] = made.info.run_id

    def _send_end(self, entry: JsonObject) -> None:
        self._mlflow.set_terminated(self.ids[entry["run"]], entry["status"], end_time=int(entry["time"] * 1000))

    def _send_params(self, entry: JsonObject) -> None:
        from mlflow.entities import Param

        params = [Param(key[:250], text[:PARAM_LENGTH]) for key, text in flatten(entry["params"]).items() if key]
        for start in range(0, len(params), BATCH):
            batch = params[start : start + BATCH]
            self._mlflow.log_batch(self.ids[entry["run"]], params=batch, synchronous=True)

    def _send_metrics(self, entry: JsonObject) -> None:
        from mlflow.entities import Metric

        moment, step = int(entry["time"] * 1000), entry.get("step") or 0
        metrics = [Metric(metric_name(key), float(value), moment, step) for key, value in entry["metrics"].items()]
        for start in range(0, len(metrics), METRIC_BATCH):
            batch = metrics[start : start + METRIC_BATCH]
            self._mlflow.log_batch(self.ids[entry["run"]], metrics=batch, synchronous=True)

    def _send_tags(self, entry: JsonObject) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(key, str(value)[:TAG_LENGTH]) for key, value in entry["tags"].items()]
        for start in range(0, len(tags), BATCH):
            self._mlflow.log_batch(self.ids[entry["run"]], tags=tags[start : start + BATCH], synchronous=True)

    def _send_table(self, entry: JsonObject) -> None:
        """Write a table as MLflow's ``load_table`` reads it and its UI shows it; writing it again is harmless."""
        run, rows, step = self.ids[entry["run"]], entry["rows"], entry.get("step")
        if not rows:
            return
        columns = list(rows[0])
        content = {"columns": columns, "data": [[row.get(column) for column in columns] for row in rows]}
        name = entry["name"]
        file = f"tables/{name}.json" if step is None else f"tables/{name}/{step:06d}.json"
        self._mlflow.log_text(run, json.dumps(content, default=str), file)
        if run not in self._tables:
            known = self._mlflow.get_run(run).data.tags.get(TABLES_TAG, "[]")
            self._tables[run] = json.loads(known)
        if (table := {"path": file, "type": "table"}) not in self._tables[run]:
            self._tables[run].append(table)
            self._mlflow.set_tag(run, TABLES_TAG, json.dumps(self._tables[run]))

    def _send_artifact(self, entry: JsonObject) -> None:
        path, run = Path(entry["path"]), self.ids[entry["run"]]
        if path.is_dir():
            self._mlflow.log_artifacts(run, str(path), entry.get("folder"))
        else:
            self._mlflow.log_artifact(run, str(path), entry.get("folder"))

    def _send_register(self, entry: JsonObject) -> None:
        """Register an adapter unless it is there, with the alias ``candidate``, and tell Prefect."""
        adapter = ArtifactRef.model_validate(entry["adapter"])
        name, client = str(entry["name"]), self._mlflow
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name, description="LoRA adapters trained with the Lewis game")
        for version in client.search_model_versions(f"name = '{name}'"):
            if version.tags.get("adapter_digest") == adapter.digest:
                if UNFINISHED in version.tags:  # the process that registered it was killed
                    self._finish_registration(name, str(version.version), adapter.digest)
                return
        run = self.ids.get(entry.get("made_by") or "", self.ids[entry["run"]])
        title = str(entry.get("title") or name)
        tags = {"adapter_digest": adapter.digest, "adapter_key": adapter.key, "lewis.name": title}
        tags |= manifest_tags(adapter)
        model = client.create_logged_model(
            self._experiment, name=title, source_run_id=run, tags=tags, model_type="lora-adapter"
        )
        client.log_model_artifacts(model.model_id, str(adapter.path / "adapter"))
        client.finalize_logged_model(model.model_id, "READY")
        for key, value in entry["metrics"].items():
            moment = int(entry["time"] * 1000)
            client.log_metric(run, metric_name(key), value, timestamp=moment, model_id=model.model_id)
        made = client.create_model_version(
            name,
            source=f"models:/{model.model_id}",
            run_id=run,
            tags={**tags, UNFINISHED: "true"},
            model_id=model.model_id,
            description=title,
        )
        self._finish_registration(name, str(made.version), adapter.digest)

    def _finish_registration(self, name: str, version: str, digest: str) -> None:
        self._mlflow.set_registered_model_alias(name, "candidate", version)
        announce(name, version, digest, str(self._header["run_name"]))
        self._mlflow.delete_model_version_tag(name, version, UNFINISHED)


def announce(name: str, version: str, digest: str, run_name: str) -> None:
    """Tell Prefect that an adapter was registered: the event that re-evaluation waits for."""
    from prefect.events import emit_event

    emit_event(
        REGISTERED,
        resource={
            "prefect.resource.id": f"lewis.checkpoint.{digest[:24]}",
            "prefect.resource.name": f"{name} {version}",
            "lewis.registered-model": name,
            "lewis.run": run_name,
        },
        payload={"model": name, "version": version, "adapter_digest": digest},
    )


def manifest_tags(adapter: ArtifactRef) -> dict[str, str]:
    """Where an adapter comes from: digests of its data set, settings, base weights and files."""
    arguments: Mapping[str, Any] = adapter.verify().arguments
    weights = arguments.get("config", {}).get("model", {}).get("weights")
    return {
        "dataset_digest": str(arguments.get("dataset", {}).get("digest", "")),
        "config_digest": digest_json(arguments.get("config")),
        "base_digest": digest_json(weights) if weights is not None else "",
        "adapter_files": adapter_digest(adapter.path / "adapter"),
    }


def metric_name(name: str) -> str:
    """A name that MLflow takes: signs other than letters, digits and ``_-. :/``, as folders may have, become ``_``."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def flatten(value: object, prefix: str = "") -> dict[str, str]:
    """Flatten nested settings: ``{"a": {"b": 1}}`` becomes ``{"a.b": "1"}``."""
    if isinstance(value, Mapping) and value:
        return {
            name: text
            for key, item in value.items()
            for name, text in flatten(item, f"{prefix}.{key}" if prefix else str(key)).items()
        }
    return {prefix: value if isinstance(value, str) else json.dumps(value, default=str)}
