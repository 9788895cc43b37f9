#!/usr/bin/env bash
# Installs everything miles_lite needs on a Linux x86-64 machine without a GPU into a local virtual environment.
#
#   scripts/setup-cpu.sh [--dev]      --dev adds what `make test` needs
#
# VENV              where (default .venv)
# PYTHON            the interpreter to build it with (default python3.11)
# TORCH_INDEX_URL   an index that carries torch 2.13.0 for CPU (default: pip's own configuration)
#
# One resolver run cannot do this: SGLang's metadata pins another torch. So torch comes first and alone, then
# what must come without its dependencies, then the rest under the torch constraint. Each step is skipped
# while the hash of its requirement files is unchanged.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { printf 'setup-cpu: %s\n' "$*" >&2; exit 1; }

dev=0
case "${1:-}" in
  "") ;;
  --dev) dev=1 ;;
  *) fail "unknown argument '$1' (usage: scripts/setup-cpu.sh [--dev])" ;;
esac

VENV=${VENV:-.venv}
PYTHON=${PYTHON:-python3.11}

[[ "$(uname -s)" == Linux && "$(uname -m)" == x86_64 ]] ||
  fail "needs Linux on x86-64, this is $(uname -s) on $(uname -m): the CPU wheels exist for nothing else. Use a Linux machine or container."
glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | cut -d' ' -f2) || true
[[ -n "$glibc" ]] || fail "needs glibc 2.28 or newer; this system has another C library (musl?). Use a glibc distribution."
[[ "$(printf '2.28\n%s\n' "$glibc" | sort -V | head -n1)" == 2.28 ]] || fail "needs glibc 2.28 or newer, this is $glibc."
command -v "$PYTHON" >/dev/null || fail "'$PYTHON' not found: install Python 3.11, or name it with PYTHON=/path/to/python3.11."
version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
[[ "$version" == 3.11 ]] || fail "needs Python 3.11, '$PYTHON' is $version. Name another with PYTHON=/path/to/python3.11."

if [[ ! -x "$VENV/bin/python" ]]; then
  echo "setup-cpu: creating $VENV"
  "$PYTHON" -m venv "$VENV"
fi
pip=("$VENV/bin/python" -m pip --disable-pip-version-check --quiet)

# step NAME FILES... -- COMMAND...: runs COMMAND unless the files' hash is the one of its last success.
step() {
  local name=$1 files=() hash stamp
  shift
  while [[ "$1" != -- ]]; do files+=("$1"); shift; done
  shift
  stamp="$VENV/.installed-$name"
  hash=$(cat "${files[@]}" | sha256sum | cut -d' ' -f1)
  [[ -f "$stamp" && "$(cat "$stamp")" == "$hash" ]] && return 0
  echo "setup-cpu: $name (${files[*]})"
  "$@" || fail "step '$name' failed; the lines above are pip's. Nothing else was changed: mend and run again."
  echo "$hash" >"$stamp"
}

torch_index=()
[[ -n "${TORCH_INDEX_URL:-}" ]] && torch_index=(--index-url "$TORCH_INDEX_URL")

step torch requirements/torch.txt -- "${pip[@]}" install "${torch_index[@]}" -r requirements/torch.txt
step nodeps requirements/cpu-nodeps.txt -- "${pip[@]}" install --no-deps -r requirements/cpu-nodeps.txt
step cpu requirements/torch.txt requirements/cpu.txt -- "${pip[@]}" install -c requirements/torch.txt -r requirements/cpu.txt
if ((dev)); then
  step dev requirements/torch.txt requirements/dev.txt -- "${pip[@]}" install -c requirements/torch.txt -r requirements/dev.txt
fi
step miles_lite pyproject.toml -- "${pip[@]}" install --no-deps --no-build-isolation -e .
