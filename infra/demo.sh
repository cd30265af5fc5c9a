#!/usr/bin/env bash
# The whole Lewis game on the pocket world: sets up .venv, runs the full pipeline, says where the report is.
# Run it again at any time: what is done is not done again. Further arguments go to the flow, e.g.
#   bash infra/demo.sh --set training.max_steps=20
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"
ensure_environment ""
result="$("$VENV/bin/python" -m flows full-pipeline deployments/settings/pocket.toml "$@")"
echo "$result"
"$VENV/bin/python" - "${result##*$'\n'}" <<'PYTHON'
import json
import sys

result = json.loads(sys.argv[1])
print(f"\n{'':24}" + "".join(f"{name:>12}" for name in result["speakers"]))
for metric in result["base"]:
    values = (result[name][metric] for name in result["speakers"])
    print(f"{metric:24}" + "".join(f"{'-' if value is None else format(value, '.3f'):>12}" for value in values))
print(f"\n{result['computed']} stages computed, {result['cache_hits']} were there already")
print(f"MLflow:  {result['mlflow_uri']}")
print(f"Report:  {result['report']}")
PYTHON
