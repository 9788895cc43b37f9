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
  -h | --help) sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "scripts/$(basename "$0")"; exit 0 ;;
  *) fail "unknown argument '$1' (usage: scripts/setup-cpu.sh [--dev])" ;;
esac

VENV=${VENV:-.venv}
PYTHON=${PYTHON:-python3.11}

[[ "$(uname -s)" == Linux && "$(uname -m)" == x86_64 ]] ||
  fail "needs Linux on x86-64, this is $(uname -s) on $(uname -m): the CPU wheels exist for nothing else. Use a Linux machine or container."
glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | cut -d' ' -f2) || true
[[ -n "$glibc" ]] || fail "needs glibc 2.28 or newer; this system has another C library (musl?). Use a glibc distribution."
[[ "$(printf '2.28\n%s\n' "$glibc" | sort -V | head -n1)" == 2.28 ]] || fail "needs glibc 2.28 or newer, this is $glibc."

# require_311 PYTHON HOW: stops when that interpreter is not Python 3.11.
require_311() {
  local version
  version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || fail "'$1' does not start: $2"
  [[ "$version" == 3.11 ]] || fail "needs Python 3.11, '$1' is $version: $2"
}

if [[ ! -x "$VENV/bin/python" ]]; then
  command -v "$PYTHON" >/dev/null || fail "'$PYTHON' not found: install Python 3.11, or name it with PYTHON=/path/to/python3.11."
  require_311 "$PYTHON" "name another with PYTHON=/path/to/python3.11."
  [[ ! -e "$VENV" ]] || fail "'$VENV' exists and is no virtual environment: move it away, or name another folder with VENV=..."
  echo "setup-cpu: creating $VENV"
  "$PYTHON" -m venv "$VENV" || {
    rm -rf "$VENV"
    fail "could not create '$VENV'; the lines above say why (on Debian and Ubuntu: apt install python3.11-venv)."
  }
fi
require_311 "$VENV/bin/python" "remove '$VENV' and run again, or name another folder with VENV=..."
"$VENV/bin/python" -m pip --version >/dev/null 2>&1 || fail "'$VENV' has no pip: remove it and run again."
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

# pip complains that what came without its dependencies lacks them: that is the plan, so it becomes one line. Every
# other line of pip's is shown as it is.
unmet_as_planned() {
  awk -v planned="$(sed -n 's/^\([A-Za-z][^=<> ]*\).*/\1/p' requirements/cpu-nodeps.txt requirements/dev-nodeps.txt | tr '\n' ' ')" '
    BEGIN { split(planned, list, " "); for (i in list) known[list[i]] = 1 }
    /^ERROR: pip.s dependency resolver does not/ { header = $0; next }
    ($1 in known) && / (requires|has requirement) / { hidden++; next }
    / (requires|has requirement) / && header != "" { print header; header = "" }
    { print; fflush() }
    END { if (hidden) printf "setup-cpu: %d GPU-only or newer requirements of packages such as sglang stay unmet, as planned\n", hidden }
  '
}

# pip's output without that noise; fails when pip fails.
install() {
  { "${pip[@]}" install "$@" 2>&1 >&3 | unmet_as_planned >&2; } 3>&1
}

torch_index=()
[[ -n "${TORCH_INDEX_URL:-}" ]] && torch_index=(--index-url "$TORCH_INDEX_URL")

step torch requirements/torch.txt -- install "${torch_index[@]}" -r requirements/torch.txt
step nodeps requirements/cpu-nodeps.txt -- install --no-deps -r requirements/cpu-nodeps.txt
step cpu requirements/torch.txt requirements/cpu.txt -- install -c requirements/torch.txt -r requirements/cpu.txt
if ((dev)); then
  step dev-nodeps requirements/dev-nodeps.txt -- install --no-deps -r requirements/dev-nodeps.txt
  step dev requirements/torch.txt requirements/dev.txt -- install -c requirements/torch.txt -r requirements/dev.txt
  step clients requirements/torch.txt requirements/clients.txt -- install -c requirements/torch.txt -r requirements/clients.txt
fi
step miles_lite pyproject.toml -- install --no-deps --no-build-isolation -e .
