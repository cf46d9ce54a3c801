# `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install quickstart test lint format clean

help: ## Say what each target does
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## Make .venv with the pinned versions (done by the other targets when needed)

quickstart: $(INSTALLED) ## Make a legal specialist and its report on this machine, from data to report.html
	@$(BIN)/sllm-tune run recipes/legal/quickstart.yaml

test: lint ## Lint, types, import contract and tests
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal

lint: $(INSTALLED) ## Lint, types and import contract
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright
	@$(BIN)/lint-imports --no-logo

format: $(INSTALLED) ## Format, and mend what the linter can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean: ## Remove .venv and caches; runs/ stays
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first, so that the constraint alone chooses its build; setuptools and hatchling build the source packages
# and this one, with their pinned versions, so that nothing else is fetched for a build.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or later is needed: make PYTHON=...")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing the pinned versions into $(VENV) (minutes the first time)"
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt pip torch setuptools hatchling editables
	@$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e ".[dev]"
	@touch $@
