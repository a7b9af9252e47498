# Everything that is done with a checkout. Needs make, git and Python 3.11 or newer.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
export PYTHON EXTRAS TORCH_INDEX

BIN := .venv/bin
READY := .venv/ready
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal
# A checkout that was moved or copied has a .venv that points to the old place.
ifneq ($(shell cat $(READY) 2>/dev/null),$(CURDIR))
$(READY): again
endif

.PHONY: help run accept test test-fast test-long test-gpu check format docs setup clean again

help: ## list the targets
	@echo 'make TARGET [ARGS="..."]; all but help and clean set up first what is missing.'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' Makefile

run: $(READY) ## train a policy, as make run ARGS='task=kneeling prompt="..."'
	@$(BIN)/python -m vlmrm_exp $(ARGS)

accept: $(READY) ## see whether pretrained models are right, as make accept CLIP=rn50
	@$(BIN)/python -m vlmrm_exp.accept clip=$(or $(CLIP),rn50) $(ARGS)

test: $(READY) ## the tests, on all cores; ARGS go to pytest
	@# One more than cores: slow tests also wait, for processes and servers.
	@$(PYTEST) -n $$(($$(nproc) + 1)) -m "not gpu and not long" $(ARGS)

test-fast: $(READY) ## those that take seconds
	@$(PYTEST) -m "not gpu and not long and not slow" $(ARGS)

test-long: $(READY) ## those that take long: whole programs, kills, large models; sweeps and examples
	@$(PYTEST) -m long $(ARGS)

test-gpu: $(READY) ## those that need a CUDA GPU
	@$(BIN)/python -m pytest -m gpu $(ARGS)

check: $(READY) ## lint, format and types, changing nothing
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m pyright

format: $(READY) ## put imports and layout in order
	@$(BIN)/python -m ruff check --fix .
	@$(BIN)/python -m ruff format .

docs: $(READY) ## docs/ as a site in build/site; broken links are errors
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo 'build/site/index.html; its search needs a server: python -m http.server -d build/site'

setup: ## make or mend .venv; PYTHON=python3.12, TORCH_INDEX=URL, EXTRAS=dev,hf choose
	@scripts/setup.sh

clean: ## remove .venv and caches, never outputs
	rm -rf .venv .pytest_cache .ruff_cache

$(READY): pyproject.toml constraints.txt Makefile scripts/setup.sh
	@scripts/setup.sh
