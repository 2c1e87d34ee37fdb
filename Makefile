# Everything runs in .venv, which the first target that needs it makes. `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

# The first Python that is new enough. `make PYTHON=/path/to/python3` names another one.
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -p no:cacheprovider

# How much of the simulation and of chaos. `make test` takes the tests' own defaults, which are bounded.
SEEDS ?= 5000
CHAOS_SECONDS ?= 120
STORM_SECONDS ?= 300
STORM_SEED ?=
unexport SEEDS CHAOS_SECONDS STORM_SECONDS STORM_SEED

# Settings of a supervisor of the caller's are none of the tests' business.
$(foreach name,$(filter DURABLEFUTURE_%,$(.VARIABLES)),$(eval unexport $(name)))
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

.PHONY: help venv lint test demo bench simulate chaos storm build clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | while IFS=$$'\t' read -r name text; do \
		printf '%-10s %s\n' "$$name" "$$text"; done

venv: ## make .venv with the package and what the tests need, once
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" scripts/make_venv.py

lint: venv ## style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=examples/order $(BIN)/mypy --explicit-package-bases scripts examples/*.py examples/order/*.py
	$(BIN)/lint-imports --no-cache

test: lint ## everything that has to hold, in bounded time
	$(PYTEST) --durations=15

demo: venv ## an order whose worker is killed with SIGKILL while it ships
	$(BIN)/python examples/order/demo.py

bench: venv ## the figures of docs/performance.md, on this machine
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python "$$file"; done

simulate: venv ## whole clusters in virtual time, SEEDS=5000 random lives
	$(BIN)/python -m simulator --seeds $(SEEDS)

chaos: venv ## real processes under SIGKILL at random, CHAOS_SECONDS=120
	CHAOS_SECONDS=$(CHAOS_SECONDS) $(PYTEST) tests/chaos --timeout=0

storm: venv ## real clusters in a storm of kills and stops, STORM_SECONDS=300 STORM_SEED=..., and a verdict
	$(BIN)/python -m simulator.storm --seconds $(STORM_SECONDS) $(if $(STORM_SEED),--seed $(STORM_SEED))

build: venv ## the wheel, in dist/
	$(BIN)/python -m pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir dist .

clean: ## remove what the targets made
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -rf examples/order/.durablefuture examples/order/supervisor.log
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
