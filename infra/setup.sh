# Sourced by demo.sh and test.sh: makes .venv with the tested versions, once. Not run by itself.
#
#   LEWIS_VENV   another place for the environment (default: .venv in the repository)
#   LEWIS_PYTHON another interpreter (default: the first of python3.11, python3.12, python3 that is 3.11 or 3.12)

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${LEWIS_VENV:-$ROOT/.venv}"
TORCH="torch==2.14.1"
TORCHVISION="torchvision==0.29.1"

find_python() {
    local candidate
    for candidate in ${LEWIS_PYTHON:-python3.11 python3.12 python3}; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "Lewis needs Python 3.11 or 3.12; install one, or name it in LEWIS_PYTHON" >&2
    return 1
}

# What is installed depends on these files and on where the repository lies.
wanted_stamp() {
    { cat "$ROOT/pyproject.toml" "$ROOT/infra/constraints.txt" "$ROOT/infra/setup.sh"; echo "$ROOT $1"; } | sha256sum | cut -d' ' -f1
}

# ensure_environment EXTRA: an environment with the package and the extra ("" or "dev").
ensure_environment() {
    local extra="$1" stamp="$VENV/.lewis-${1:-base}" python
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(wanted_stamp "$extra")" ]; then
        return
    fi
    python="$(find_python)"
    echo "Setting up $VENV with $("$python" --version); this takes a few minutes the first time"
    [ -x "$VENV/bin/python" ] || "$python" -m venv "$VENV"
    rm -rf "$ROOT/lewis.egg-info" # a stale one would hide the entry points
    # Torch first and by exact version: a range would make pip look for other builds.
    "$VENV/bin/python" -m pip install -qq --no-compile "$TORCH" "$TORCHVISION"
    "$VENV/bin/python" -m pip install -qq --no-compile --constraint "$ROOT/infra/constraints.txt" --editable "$ROOT${extra:+[$extra]}"
    # On all processors, which pip does not; what is written for a newer Python only is left as it is.
    "$VENV/bin/python" -m compileall -qq -j 0 "$VENV/lib" || true
    wanted_stamp "$extra" >"$stamp"
}
