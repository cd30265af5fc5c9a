#!/usr/bin/env bash
# Everything that has to hold: lint, types, tests. Sets up .venv with the dev extra first. Arguments go to pytest, e.g.
#   bash infra/test.sh -m 'not slow'
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"
ensure_environment dev
"$VENV/bin/python" -m ruff check .
"$VENV/bin/python" -m ruff format --check --quiet .
"$VENV/bin/python" -m mypy
"$VENV/bin/python" -m pytest "$@"
