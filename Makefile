# The two commands of the README, and the rest. Everything is installed into .venv (VENV=... takes another folder).
SHELL := /bin/bash
VENV ?= .venv
SEED ?= 0
export VENV SEED
# A run starts many processes: what one has compiled, the others read.
unexport PYTHONDONTWRITEBYTECODE
bin := $(VENV)/bin
# Tests run in three processes, also on two cores: a quarter of their time they wait (tests/together.py says which stay
# in one). Those that start engines are dealt out as they are collected, so that the long ones are not the last.
side_by_side := -n 3 --dist loadscope
engines := $(side_by_side) --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-all test-gpu lint bench setup setup-dev setup-clients setup-environments clean

help:           ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /  make \1\t/p' Makefile | expand -t 24

quickstart: setup     ## install, then train a SWE agent end to end; SEED=2 takes another seed
	launchers/quickstart.sh

test: setup-dev lint     ## install what the tests need, then lint, types, import contracts and tests
	$(bin)/python -m pytest $(side_by_side) -m "not e2e and not slow and not gpu"
	$(bin)/python -m pytest $(engines) -m "e2e and not slow and not gpu"

test-all: setup-dev lint     ## the same, and the slow tests
	$(bin)/python -m pytest $(side_by_side) -m "not e2e and not gpu"
	$(bin)/python -m pytest $(engines) -m "e2e and not gpu"

test-gpu:       ## the tests that need a CUDA device, in the environment that is active
	python3 -m pytest -m gpu

lint: setup-dev     ## formatting, lint, types, import contracts, shell scripts
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	PYTHONPATH=. $(bin)/lint-imports --config pyproject.toml
	$(bin)/shellcheck -x launchers/*.sh launchers/recipes/*.sh launchers/monitoring/*.sh scripts/*.sh .ci/run

bench: setup-dev     ## what is claimed to be fast, measured here
	@for file in benchmarks/*.py; do echo "== $$file"; $(bin)/python "$$file" || exit 1; done

setup:          ## install what training on CPU needs
	@scripts/setup-cpu.sh

setup-dev:      ## and what the tests need
	@scripts/setup-cpu.sh --dev

setup-clients:  ## and the harnesses that tests/clients runs, about 800 MB; needs npm
	@scripts/setup-clients.sh

setup-environments:  ## and the environments that tests/environments plays; needs a C compiler
	@scripts/setup-environments.sh

clean:          ## remove caches and build output; keeps .venv and runs/
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.venv/*' -type d -prune -exec rm -rf {} +
