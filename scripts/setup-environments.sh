#!/usr/bin/env bash
# Installs the packages of the environments that tests/environments plays; they are skipped without them. Some are built
# from source, with a C compiler. OpenEnv's servers run in an interpreter of their own.
#
# VENV                  the virtual environment of the tests (default .venv)
# MILES_LITE_OPENENV    the one of OpenEnv's servers (default $VENV/openenv)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { printf 'setup-environments: %s\n' "$*" >&2; exit 1; }

VENV=${VENV:-.venv}
[[ -x "$VENV/bin/python" ]] || fail "no virtual environment in '$VENV': run make setup-dev first."
pip=(-m pip --disable-pip-version-check --quiet install)
"$VENV/bin/python" "${pip[@]}" -c requirements/torch.txt -r requirements/environments.txt
"$VENV/bin/python" "${pip[@]}" --no-deps -r requirements/environments-nodeps.txt
servers=${MILES_LITE_OPENENV:-$VENV/openenv}
[[ -x "$servers/bin/python" ]] || "$VENV/bin/python" -m venv "$servers"
"$servers/bin/python" "${pip[@]}" -r requirements/openenv.txt
