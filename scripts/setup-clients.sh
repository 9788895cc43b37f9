#!/usr/bin/env bash
# Installs the harnesses of tests/clients/package.json, about 800 MB, for the tests that run them; needs npm and Node 20.
#
# VENV                  the virtual environment whose tests will run them (default .venv)
# MILES_LITE_CLIENTS    where (default $VENV/clients)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { printf 'setup-clients: %s\n' "$*" >&2; exit 1; }

command -v npm >/dev/null || fail "npm not found: install Node.js 20 or newer."
major=$(node -p 'process.versions.node.split(".")[0]') || fail "node does not start."
((major >= 20)) || fail "needs Node 20 or newer, this is $major."
folder=${MILES_LITE_CLIENTS:-${VENV:-.venv}/clients}
mkdir -p "$folder"
cmp --silent tests/clients/package.json "$folder/.installed.json" && exit 0
cp tests/clients/package.json "$folder/package.json"
# No package runs a script but Claude Code, whose own puts its program in place.
npm install --prefix "$folder" --ignore-scripts --no-audit --no-fund --loglevel=error ||
  fail "npm failed; the lines above are its own."
node "$folder/node_modules/@anthropic-ai/claude-code/install.cjs" || fail "Claude Code's install.cjs failed."
cp tests/clients/package.json "$folder/.installed.json"
