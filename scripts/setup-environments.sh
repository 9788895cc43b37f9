#!/usr/bin/env bash
# Installs the packages of the environments that tests/environments plays; they are skipped without them. Some are built
# from source, with a C compiler. The servers of OpenEnv, verifiers and NeMo-Gym run in
# interpreters of their own.
#
# VENV                  the virtual environment of the tests (default .venv)
# MILES_LITE_OPENENV    the one of OpenEnv's servers (default $VENV/openenv)
# MILES_LITE_VERIFIERS  the one of verifiers' (default $VENV/verifiers)
# MILES_LITE_NEMO_GYM   the one of NeMo-Gym's (default $VENV/nemo-gym)
# NEMO_GYM_PYTHON       what that is made with (default python3.13, or pyenv's 3.13); without one it is left out
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { printf 'setup-environments: %s\n' "$*" >&2; exit 1; }

VENV=${VENV:-.venv}
[[ -x "$VENV/bin/python" ]] || fail "no virtual environment in '$VENV': run make setup-dev first."
pip=(-m pip --disable-pip-version-check --quiet install)
"$VENV/bin/python" "${pip[@]}" -c requirements/torch.txt -r requirements/environments.txt
"$VENV/bin/python" "${pip[@]}" --no-deps -r requirements/environments-nodeps.txt
for each in "openenv ${MILES_LITE_OPENENV:-$VENV/openenv}" "verifiers ${MILES_LITE_VERIFIERS:-$VENV/verifiers}"; do
  read -r name servers <<<"$each"
  [[ -x "$servers/bin/python" ]] || "$VENV/bin/python" -m venv "$servers"
  "$servers/bin/python" "${pip[@]}" -r "requirements/$name.txt"
done
gym=${MILES_LITE_NEMO_GYM:-$VENV/nemo-gym}
python=${NEMO_GYM_PYTHON:-python3.13}
"$python" -c '' 2>/dev/null || python=$(pyenv prefix 3.13 2>/dev/null)/bin/python3 || true
if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 13))' 2>/dev/null; then
  [[ -x "$gym/bin/python" ]] || "$python" -m venv "$gym"
  "$gym/bin/python" "${pip[@]}" -r requirements/nemo-gym.txt
  "$gym/bin/python" "${pip[@]}" --no-deps --ignore-requires-python -r requirements/nemo-gym-nodeps.txt
else
  echo "setup-environments: no Python 3.13: NeMo-Gym is left out" >&2
fi
