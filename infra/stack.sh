#!/usr/bin/env bash
# Everything that production needs, as processes of this machine: PostgreSQL, Prefect server, MLflow server, a model
# service and a worker, with the work pool and all deployments registered. Idempotent; safe to kill at any moment.
#
#   bash infra/stack.sh up            start what is not running, and print the addresses
#   bash infra/stack.sh status        what runs, where, and whether it answers (exit status 1 if anything does not)
#   bash infra/stack.sh logs worker   the end of a part's log; with -f, follow it
#   bash infra/stack.sh deploy        register work pool and deployments again, after a change of settings
#   bash infra/stack.sh down          stop everything; data stays
#
# Settings are environment variables LEWIS_STACK_*: see infra/docs/production.md.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"
ensure_environment ""
exec "$VENV/bin/python" -m infra.stack "$@"
