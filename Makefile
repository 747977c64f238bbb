# Everything a contributor runs. `make` alone lists the targets.

PYTHON ?= python3
PYTEST_ARGS ?=
BENCH_ARGS ?=
ADAPTERS ?=
BEFORE ?=
GOLDEN_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
TORCH := $(shell grep '^torch==' constraints.txt)
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint format soak bench bench-real golden lines screenshots clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1|\2/' \
		| while IFS='|' read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done

venv: $(VENV)/.ready ## set up .venv, or bring it up to date (PYTHON=python3.12 chooses the interpreter)

# torch goes first, pinned: left to resolve it, pip may fetch several builds of some gigabytes each.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'vlora-tui needs Python 3.11 or newer; $(PYTHON) is older or missing.' >&2; \
		echo 'Name another one: make venv PYTHON=python3.12' >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) '$(TORCH)'
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $@

# The peers share .venv: their own needs are already in it, and a comparison must use one torch.
$(VENV)/.ready-peers: $(VENV)/.ready constraints-peers.txt
	$(PIP_INSTALL) -r constraints-peers.txt
	@touch $@

demo: $(VENV)/.ready ## see it work on adapters it makes itself
	$(BIN)/vlora-tui demo

test: $(VENV)/.ready ## run the tests (PYTEST_ARGS='-k catalog -n 2' chooses and adds options)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.ready ## ruff and mypy; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.ready ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

soak: $(VENV)/.ready ## what takes hours: faults at every write point, 100,000 random keys (ADAPTERS=DIR has real ones)
	$(BIN)/python -m tests.faults.run
	$(BIN)/python -m tests.faults.run --two-renames --acts kill --only force
	$(BIN)/python -m tests.faults.pairs
	$(BIN)/python -m tests.monkey $(if $(ADAPTERS),--adapters '$(ADAPTERS)')
	$(BIN)/python -W ignore -m tests.fuzz.readers --calls 20000 --seconds 300

bench: $(VENV)/.ready-peers ## compare speed, memory and error with both peers (installs them)
	$(BIN)/python -m tests.benchmarks.run $(BENCH_ARGS)

bench-real: $(VENV)/.ready-peers ## the first library's tables on real adapters (ADAPTERS='PATHS hf://...')
	$(BIN)/python -m tests.benchmarks.real $(ADAPTERS)

golden: $(VENV)/.ready ## show that no command does otherwise than in another checkout (BEFORE=../checkout)
	@test -d '$(BEFORE)' || { echo 'Name the checkout to compare with: make golden BEFORE=../checkout' >&2; exit 1; }
	@mkdir -p out
	$(BIN)/python -m tests.golden_run record out/golden-before.json --repo '$(BEFORE)' $(GOLDEN_ARGS)
	$(BIN)/python -m tests.golden_run record out/golden-after.json $(GOLDEN_ARGS)
	$(BIN)/python -m tests.golden_run compare out/golden-before.json out/golden-after.json

lines: $(VENV)/.ready ## count code lines without blanks, comments and docstrings (here, or BEFORE=../checkout)
	$(BIN)/python -m tests.code_lines $(BEFORE)

screenshots: $(VENV)/.ready ## make the pictures of this README again, from real runs
	$(BIN)/python screenshots/make.py

clean: ## remove builds and caches; .venv stays
	rm -rf build dist out .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . \( -name .git -o -name '.venv*' \) -prune -o -name __pycache__ -prune -exec rm -rf {} +
