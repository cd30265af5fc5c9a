#!/usr/bin/env bash
# Known vulnerabilities of the pinned versions (infra/constraints.txt). Run it on a schedule: what it says depends on the day.
# Exit status 0: nothing that can be mended, or no index answers (which it says); 1: a version with a known vulnerability
# for which there is a mended one, unless infra/audit_ignore.txt says why it does not matter here.
#
#   LEWIS_AUDIT_SERVICE   pypi (default) or osv
#   LEWIS_AUDIT_VENV      where pip-audit is installed (default: .venv/audit)
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
SERVICE="${LEWIS_AUDIT_SERVICE:-pypi}"
case "$SERVICE" in pypi | osv) ;; *) echo "audit: LEWIS_AUDIT_SERVICE must be pypi or osv, found $SERVICE" >&2; exit 2 ;; esac
HOME_OF_AUDIT="${LEWIS_AUDIT_VENV:-$ROOT/.venv/audit}"
PINS="${1:-$ROOT/infra/constraints.txt}"

no_index() {
    echo "audit: $1; nothing was looked up"
    exit 0
}

# A database that does not know an old hole knows nothing: some mirrors of the index leave that part out.
python3 - "$SERVICE" <<'PYTHON' || no_index "the vulnerability database $SERVICE does not answer, or is empty"
import json
import sys
import urllib.request

if sys.argv[1] == "pypi":
    request, key = urllib.request.Request("https://pypi.org/pypi/jinja2/3.1.2/json"), "vulnerabilities"
else:
    query = {"version": "3.1.2", "package": {"name": "jinja2", "ecosystem": "PyPI"}}
    request, key = urllib.request.Request("https://api.osv.dev/v1/query", json.dumps(query).encode()), "vulns"
try:
    with urllib.request.urlopen(request, timeout=10) as answer:
        sys.exit(not json.load(answer).get(key))
except (OSError, ValueError):
    sys.exit(1)
PYTHON
if [ ! -x "$HOME_OF_AUDIT/bin/pip-audit" ]; then
    python3 -m venv "$HOME_OF_AUDIT"
    "$HOME_OF_AUDIT/bin/python" -m pip install -qq "pip-audit>=2.10,<3" || no_index "pip-audit cannot be installed"
fi
REPORT="$(mktemp)"
trap 'rm -f "$REPORT"' EXIT
timeout 600 "$HOME_OF_AUDIT/bin/pip-audit" --requirement "$PINS" --no-deps --disable-pip --progress-spinner off \
    --vulnerability-service "$SERVICE" --format json --output "$REPORT" 2>"$REPORT.errors" || true
[ -s "$REPORT" ] || { tail -3 "$REPORT.errors" >&2; rm -f "$REPORT.errors"; no_index "pip-audit got no answer"; }
rm -f "$REPORT.errors"
python3 "$ROOT/infra/read_audit.py" "$REPORT" "$ROOT/infra/audit_ignore.txt"
