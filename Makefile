# Everything a newcomer needs; `make help` lists it.

PYTHON ?= python3
# Another package index, asked besides the default one, e.g. for a CPU or CUDA build of torch:
#   make demo INDEX=URL
INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# One thread a worker: torch's own threads would fight over the cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

.PHONY: help demo test check lint types install lock clean

help: ## Show this help
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'
	@echo
	@echo "  make demo INDEX=URL     also ask the package index at URL (a CPU or CUDA torch)"
	@echo "  make demo PYTHON=PATH   use this Python (3.11 or later)"

demo: install ## Set up .venv, then score every feature of the default's SAEs (minutes)
	$(BIN)/steerlens experiment=demo

test: install ## Set up .venv, then run all tests
	$(PYTEST)

check: lint types test ## Lint, types and tests

lint: install ## Style (ruff)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install ## Types (pyright)
	$(BIN)/pyright

install: $(INSTALLED) ## Set up .venv from the lock

$(INSTALLED): constraints.txt pyproject.toml packages/smollm2/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "steerlens needs Python 3.11 or later; choose one with PYTHON=PATH."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(if $(INDEX),--extra-index-url $(INDEX)) \
	  --constraint constraints.txt --editable '.[dev]' --editable ./packages/smollm2
	@touch $@

lock: ## Write the versions in .venv to constraints.txt
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//' > constraints.txt

clean: ## Remove .venv and what tools left behind
	rm -rf $(VENV) .pytest_cache .ruff_cache
