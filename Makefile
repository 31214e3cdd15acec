# make demo | test | bench | distil | lint | setup | clean. Each sets itself up first; CONTRIBUTING.md explains the knobs.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo distil test test-minkowski bench bench-minkowski lint format clean distclean

IN_VENV := source tools/setup/env.sh &&
ARGS ?=

help:
	@printf '%s\n' 'make setup   make or complete .venv (everything below does this first)' \
	  'make demo    the real ROS 2 graph on a procedural apartment -> out/demo/' \
	  'make distil  train the student that the demo uses anew, on procedural rooms (an hour or so on a CPU; goes on where it stopped)' \
  'make test    the whole test suite                    (ARGS="-k fusion")' \
	  'make test-minkowski, make bench-minkowski   compare with MinkowskiEngine, built into out/ (15 minutes)' \
	  'make bench   measured speed and memory -> out/bench.json (ARGS="--quick --only fusion")' \
	  'make lint    ruff, mypy, import contracts' \
	  'make format  let ruff rewrite what it can' \
	  'make clean   remove build products; make distclean removes .venv too'

setup:
	@tools/setup/setup.sh

demo: setup
	@$(IN_VENV) python tools/demo.py $(ARGS)

# Rooms, recipe (training/distillation/recipe.py, preset robot) and destination of the shipped student.
# make distil ARGS="--set steps=20" SEEDS=300-301 ROOMS=out/try RUN=out/try_run INSTALL=  tries it without installing.
SEEDS ?= 300-339
ROOMS ?= out/distil/nano/train
RUN ?= out/distil/nano/run
INSTALL ?= --install
WORKERS ?= 2

distil: setup
	@$(IN_VENV) python -m training prepare synthetic:$(SEEDS) --out $(ROOMS) --teacher geometric --workers $(WORKERS)
	@$(IN_VENV) python -m training distil $(ROOMS) --out $(RUN) --preset robot --teacher geometric --resume $(ARGS)
	@$(IN_VENV) python -m training export $(RUN) --scenes $(ROOMS) $(INSTALL)

test: setup
	@$(IN_VENV) python -m pytest $(ARGS)

test-minkowski: setup
	@tools/minkowski.sh
	@$(IN_VENV) PYTHONPATH=out/minkowski/site python -m pytest -m minkowski test/core $(ARGS)

bench: setup
	@$(IN_VENV) python tools/bench/run.py $(ARGS)

bench-minkowski: setup
	@tools/minkowski.sh
	@$(IN_VENV) PYTHONPATH=out/minkowski/site python tools/bench/run.py --only sparse --out out/bench_sparse.json $(ARGS)

lint: setup
	@$(IN_VENV) ruff check . && ruff format --check . && mypy && lint-imports

format: setup
	@$(IN_VENV) ruff format . && ruff check --fix .

clean:
	rm -rf build install log out .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv
