"""Prefect flows: prose over tasks.

Importing this package only sets the environment: quiet, offline, patient enough for a slow machine. What is set
already is kept.
"""

import os

_DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    "PREFECT_PLUGINS_ENABLED": "true",  # a server that starts for this run has deployments.sqlite_cursors
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",  # threads that follow log files belong to no flow
    "PREFECT_LOGGING_EXTRA_LOGGERS": "lewis_core,tasks",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # tasks.tracking tries again itself, and nobody waits for it
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
for _name, _value in _DEFAULTS.items():
    os.environ.setdefault(_name, _value)
