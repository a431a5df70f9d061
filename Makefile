# `make` lists what can be made. Needs make and Python 3.11 or newer; everything else is installed into .venv.
#   PYTHON=python3.12      another interpreter for .venv
#   PIP_FLAGS="..."        more options for pip, for example an index with CPU-only builds of torch

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/sh

PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt
PACKAGING := setup.cfg pyproject.toml constraints.txt
CODE := dicomnode training tests benchmarks

.PHONY: help
help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer was found: install one, or run: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Making $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV) || { echo "If the module venv is missing: install it (Debian: apt-get install python3-venv)"; exit 1; }

$(VENV)/node.stamp: $(PACKAGING) | $(BIN)/python
	@echo "Installing the node into $(VENV) (a few minutes the first time)"
	@$(PIP) -e .
	@touch $@

$(VENV)/development.stamp: $(PACKAGING) | $(BIN)/python
	@echo "Installing the node, its tests and tools into $(VENV) (a few minutes the first time)"
	@$(PIP) -e '.[test,lint,training,postgresql]'
	@touch $@ $(VENV)/node.stamp

.PHONY: install
install: $(VENV)/node.stamp  ## install the node into .venv

.PHONY: demo
demo: $(VENV)/node.stamp  ## start a node and an archive here, send a radiograph, show the report
	@$(BIN)/dicomnode demo --output demo

.PHONY: test
test: lint unit  ## lint, types, import layers, and all tests with branch coverage

.PHONY: unit
unit: $(VENV)/development.stamp  ## all tests with branch coverage
	@$(BIN)/python -m pytest --cov --cov-report=term:skip-covered

.PHONY: lint
lint: $(VENV)/development.stamp  ## ruff, mypy --strict, import-linter
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/mypy
	@$(BIN)/lint-imports

.PHONY: bench
bench: $(VENV)/development.stamp  ## C-STORE and projector against others, seconds to the report, network seconds, calibration
	@$(BIN)/python -m benchmarks

.PHONY: evaluate
evaluate: $(VENV)/development.stamp  ## measure the shipped model on held-out phantoms: figures, scatter, Bland-Altman
	@$(BIN)/python -m training evaluate

.PHONY: train
train: $(VENV)/development.stamp  ## make the simulated pairs and train the networks (hours)
	@$(BIN)/python -m training pairs $(if $(ANATOMY),--anatomy $(ANATOMY))
	@$(BIN)/python -m training train

.PHONY: model
model: $(VENV)/development.stamp  ## all of it: pairs, training, evaluation, export of the shipped bundle (hours); ANATOMY=FOLDER adds atlas bones
	@$(BIN)/python -m training build $(if $(ANATOMY),--anatomy $(ANATOMY))

.PHONY: clean
clean:  ## remove .venv, caches, demo and test leftovers
	rm -rf $(VENV) demo build dist *.egg-info htmlcov .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
