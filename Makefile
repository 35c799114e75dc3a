# Each target does all of its own set-up on a fresh machine: Linux, Python 3.11 or newer, make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test lint format notebooks clean

help: ## print this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## pretrain, SFT, reward model and PPO on human-rated sentences: about twelve minutes on 2 cores
	$(BIN)/gpt run recipes/pipelines/demo.yaml

test: lint ## everything that CI checks
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.dev ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## let ruff format and mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

notebooks: $(VENV)/.dev ## run the notebooks and keep their output
	$(BIN)/python -m pytest tests/test_notebooks.py

clean: ## remove the virtual environment and all runs
	rm -rf $(VENV) runs

$(VENV)/.base:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is $$($(PYTHON) --version), expected Python 3.11 or newer; name one with make PYTHON=..."; exit 2; }
	@echo "Creating $(VENV) (once; the packages are some hundred megabytes) ..."
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.base pyproject.toml constraints.txt
	@echo "Installing gpt_modules and what the demo needs ..."
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo,feedback]'
	@touch $@

$(VENV)/.dev: $(VENV)/.base pyproject.toml constraints.txt
	@echo "Installing gpt_modules and what its tests need ..."
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
