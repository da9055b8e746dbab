# Every target sets up what it needs in .venv on its first call; a later call is instant.
# Another interpreter: make test PYTHON=python3.12 (in a tree without .venv, or after `make clean`).

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --quiet --disable-pip-version-check install --constraint constraints.txt
SOURCES := src tests tools docs/hooks docs/pictures $(wildcard benchmarks examples)

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench faults coverage fuzz docs format clean

# Of `make fuzz`: how long, how many cases at most, and the first one. The folder hesse-fuzz/ has the
# progress, with which the next call goes on, and the faults as scripts.
SECONDS ?= 600
CASES   ?= inf
SEED    ?= 0

help:     ## list the targets
	@sed -n 's/^\([a-z]*\): .*## /  make \1\t/p' Makefile | expand -t 16

demo: $(VENV)/.demo  ## run the demonstration; its report is written to hesse-demo/
	$(BIN)/hesse demo

# Its many processes share what one of them compiled, whatever the user prefers elsewhere.
test: $(VENV)/.dev  ## run every test, the slow ones too, with coverage
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -m "not peers" \
	  --cov --cov-report=term --cov-fail-under=90 --durations=10

lint: $(VENV)/.dev  ## check style, types, layers and the length of files
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	@find src/hesse -name '*.py' -exec awk \
	  'FNR == 401 { print FILENAME ": over 400 lines"; bad = 1 } END { exit bad }' {} +

bench: $(VENV)/.bench  ## run the benchmarks
	$(BIN)/python -m benchmarks

faults: $(VENV)/.dev  ## make some 780 things go wrong and write docs/faults.md
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.faults

coverage: $(VENV)/.dev  ## see which rule covers which parameter and write docs/coverage.md
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.coverage

fuzz: $(VENV)/.dev  ## try random functions and models, SECONDS= CASES= SEED=
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.fuzz --seconds $(SECONDS) --cases $(CASES) --seed $(SEED)

docs: $(VENV)/.docs  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(VENV)/.dev  ## format the code and apply the safe fixes
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

clean:    ## remove .venv and everything built
	rm -rf $(VENV) build dist site hesse-demo hesse-fuzz htmlcov .coverage .hypothesis \
	  .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "Hesse needs Python 3.10 or newer, and $(PYTHON) is" \
	    "$$($(PYTHON) --version 2>&1 || true). Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# One stamp per extra: it is out of date when the dependencies are.
$(VENV)/.%: $(VENV)/.venv pyproject.toml constraints.txt
	$(PIP) --editable ".[$*]"
	@touch $@
