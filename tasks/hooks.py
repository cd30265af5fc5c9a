"""What is left to do when a flow run ended without its process being able to: cancelled or crashed.

Prefect's worker calls these. Child processes are no matter for them: their guards have ended them already, and GPU
slots and turns are free, because the kernel holds them. What remains is MLflow, where the run would stay open.
"""

import logging
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def finish_tracking(flow: Any, flow_run: Any, state: Any) -> None:
    """Tell MLflow what the run could not tell any more, and that it was killed."""
    from tasks.tracking import upload_journals

    config = flow_run.parameters.get("config")
    run = getattr(config, "run", None) or (config.get("run", {}) if isinstance(config, dict) else {})
    work_dir = getattr(run, "work_dir", None) or (run.get("work_dir") if isinstance(run, dict) else None)
    folder = Path(work_dir or "runs/default").expanduser() / "logs"
    if folder.is_dir():
        counts = upload_journals(folder.absolute())
        if counts["sent"]:
            logger.info("%s %s: %s; MLflow was told %d entries", flow.name, flow_run.name, state.name, counts["sent"])


HOOKS: Any = {"on_cancellation": [finish_tracking], "on_crashed": [finish_tracking]}
"""Arguments of every flow that tracks."""
