#!/usr/bin/env bash
# Everything that has to hold: lint, types, tests. Sets up .venv with the dev extra first. Arguments go to pytest, e.g.
#   bash infra/test.sh -m 'not slow'
#   bash infra/test.sh -n 0 --pdb tests/core   # in one process
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"
ensure_environment dev
"$VENV/bin/python" -m ruff check .
"$VENV/bin/python" -m ruff format --check --quiet .
types="$(mktemp)"
nice "$VENV/bin/python" -m mypy >"$types" 2>&1 & # whenever the tests wait
checker=$!
processes="$(nproc)"
processes=$((processes < 2 ? 2 : processes > 4 ? 4 : processes)) # more have nothing to do: the longest file takes a third
status=0
"$VENV/bin/python" -m pytest -n "$processes" "$@" || status=$?
wait "$checker" || status=$?
cat "$types"
rm -f "$types"
exit "$status"
