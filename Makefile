# Everything that is done with a checkout. Needs make, git and Python 3.11 or newer.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
export PYTHON EXTRAS TORCH_INDEX

BIN := .venv/bin
READY := .venv/ready
# A checkout that was moved or copied has a .venv that points to the old place.
ifneq ($(shell cat $(READY) 2>/dev/null),$(CURDIR))
$(READY): again
endif

.PHONY: help run test test-fast test-gpu check format setup clean again

help: ## list the targets
	@echo 'make TARGET [ARGS="..."]; all but help and clean set up first what is missing.'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' Makefile

run: $(READY) ## train a policy, as make run ARGS='task=kneeling prompt="..."'
	@$(BIN)/python -m vlmrm_exp $(ARGS)

test: $(READY) ## every test that needs no GPU; ARGS go to pytest
	@$(BIN)/python -m pytest -m "not gpu" $(ARGS)

test-fast: $(READY) ## the tests that take seconds
	@$(BIN)/python -m pytest -m "not gpu and not slow" $(ARGS)

test-gpu: $(READY) ## the tests that need a CUDA GPU
	@$(BIN)/python -m pytest -m gpu $(ARGS)

check: $(READY) ## lint, format and types, changing nothing
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m pyright

format: $(READY) ## put imports and layout in order
	@$(BIN)/python -m ruff check --fix .
	@$(BIN)/python -m ruff format .

setup: ## make or mend .venv; PYTHON=python3.12, TORCH_INDEX=URL, EXTRAS=dev,hf choose
	@scripts/setup.sh

clean: ## remove .venv and caches, never outputs
	rm -rf .venv .pytest_cache .ruff_cache

$(READY): pyproject.toml constraints.txt Makefile scripts/setup.sh
	@scripts/setup.sh
