"""From a flow run to its MLflow run and back: tags on one side, an artifact on the other."""

import logging
import shlex

from prefect import runtime as prefect_runtime
from prefect.artifacts import create_markdown_artifact
from prefect.utilities.urls import url_for

logger = logging.getLogger(__name__)


def prefect_tags() -> dict[str, str]:
    """Tags of an MLflow run that lead to the flow run; its description does too, as a link where there is a UI."""
    run_id, name = str(prefect_runtime.flow_run.id or ""), str(prefect_runtime.flow_run.name or "")
    url = (url_for("flow-run", obj_id=run_id, emit_user_warnings=False) or "") if run_id else ""
    tags = {"prefect.flow_run_id": run_id, "prefect.flow_run_name": name}
    if url:
        tags |= {"prefect.flow_run_url": url, "mlflow.note.content": f"Prefect flow run [{name}]({url})"}
    return tags


def show_mlflow_run(run_id: str | None, url: str, uri: str) -> None:
    """Make the flow run's artifact that leads to its MLflow run; a flow without it is no reason to end a run."""
    if run_id is None:
        return
    where = (
        f"[{run_id}]({url})" if url else f"`{run_id}`; to see it: `mlflow ui --backend-store-uri {shlex.quote(uri)}`"
    )
    try:
        create_markdown_artifact(
            f"MLflow run {where}", key="mlflow-run", description="Metrics, curves, samples, report"
        )
    except Exception as error:  # noqa: BLE001 - a link that cannot be shown must not end a run
        logger.debug("artifact mlflow-run: %s", error)
