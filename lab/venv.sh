#!/usr/bin/env bash
# Make .venv with exactly what requirements.txt says, checked by hash. Called by `make venv`, from the project's root.
# On a machine with Debian's own Python and no python3-venv it installs that package (root) or says so.
set -euo pipefail

started=$SECONDS
mkdir -p .lab/logs
log=.lab/logs/venv.log
: > "$log"

say() { printf '[%6.1f s] %s\n' "$((SECONDS - started))" "$*"; }
fail() {
    say "$1" >&2
    tail -n 20 "$log" >&2
    echo "The whole log: $log" >&2
    exit 1
}

python=$(command -v python3.11 || command -v python3 || true)
[ -n "$python" ] || fail "Python 3.11 was not found. Next: apt-get install python3 python3-venv"
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' ||
    fail "$python is $("$python" -V), and Python 3.11 is needed. Next: install it, or put it first on PATH."

if ! .venv/bin/python -c '' 2>> "$log"; then
    if ! "$python" -c 'import ensurepip, venv' 2>> "$log"; then
        [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null ||
            fail "This Python can't make environments. Next: apt-get install python3-venv"
        say "Python environment: installing Debian's python3-venv"
        { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends python3-venv; } \
            >> "$log" 2>&1 < /dev/null || fail "apt could not install python3-venv."
    fi
    say "Python environment: making .venv with $("$python" -V)"
    rm -rf .venv
    "$python" -m venv .venv >> "$log" 2>&1 || fail "python -m venv failed."
fi

# uv is in requirements.txt like everything else; it is taken from there, with its hashes, to install the rest.
uv_requirement=$(awk '/^uv==/ { found = 1 } found { print; if (!/\\$/) exit }' requirements.txt)
uv_version=$(printf '%s' "$uv_requirement" | sed -n 's/^uv==\([^ ]*\).*/\1/p')
if [ "$(.venv/bin/uv --version 2> /dev/null | cut -d ' ' -f 2)" != "$uv_version" ]; then
    printf '%s\n' "$uv_requirement" > .lab/logs/uv-requirement.txt
    .venv/bin/python -m pip install --disable-pip-version-check --no-deps --require-hashes \
        -r .lab/logs/uv-requirement.txt >> "$log" 2>&1 || fail "pip could not install uv $uv_version."
fi

say "Python environment: installing $(grep -c '^[a-zA-Z0-9]' requirements.txt) packages (log: $log)"
.venv/bin/uv pip sync --require-hashes --compile-bytecode --python .venv/bin/python requirements.txt \
    >> "$log" 2>&1 < /dev/null || fail "uv could not install what requirements.txt lists."
touch .venv/installed
say "Python environment: ready"
