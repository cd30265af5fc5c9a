#!/usr/bin/env bash
# Everything that has to hold: lint, types, tests. Sets up .venv with the dev extra first. Arguments go to pytest, e.g.
#   bash infra/test.sh -m 'not slow'
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"
ensure_environment dev
"$VENV/bin/python" -m ruff check .
"$VENV/bin/python" -m ruff format --check --quiet .
types="$(mktemp)"
"$VENV/bin/python" -m mypy >"$types" 2>&1 & # beside the tests, which mostly wait for processes
checker=$!
status=0
"$VENV/bin/python" -m pytest "$@" || status=$?
wait "$checker" || status=$?
cat "$types"
rm -f "$types"
exit "$status"
