# Two commands are enough: `make demo` shows the main job, `make test` runs all tests. Each makes .venv when it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Most tests wait for processes most of their time.
WORKERS ?= $(shell expr 5 \* $$(nproc) / 2)

# Thousands of short Pythons are started: without byte code each would compile what it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check bench pyz format clean

$(VENV)/.demo: pyproject.toml
	$(PYTHON) tools/make_venv.py $(VENV) cli
	@touch $@

$(VENV)/.dev: pyproject.toml
	$(PYTHON) tools/make_venv.py $(VENV) cli,dev
	@touch $@ $(VENV)/.demo

# The main job on a fresh machine: no root, no server, nothing but the package index. `make demo ARGS=--quick` is short.
demo: $(VENV)/.demo
	$(BIN)/midstream demo --picture $(VENV)/demo.html $(ARGS)

# All tests. Real servers come from Debian when this may install them (root, apt-get, no MIDSTREAM_NO_INSTALL); tests of
# programs that are missing skip and say so.
test: check
	$(PYTHON) tools/install_peers.py
	$(BIN)/python tools/run_tests.py -n $(WORKERS) --dist worksteal -m slow tests/core
	$(BIN)/python tools/run_tests.py -n $(WORKERS) --dist worksteal tests/contract tests/process tests/e2e

# Under half a minute: format, lint, types, direction of imports, the pure core.
check: $(VENV)/.dev
	$(BIN)/ruff format --check src tests tools
	$(BIN)/ruff check src tests tools
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/core -n $(WORKERS) -m "not slow"

bench: $(VENV)/.dev
	$(PYTHON) tools/make_venv.py $(VENV) cli,dev,bench
	$(PYTHON) tools/install_peers.py --bench
	$(BIN)/python tests/bench/run.py $(ARGS)

# One self-contained file for hosts: dist/midstream.pyz
pyz: $(VENV)/.demo
	$(BIN)/python -m midstream.cli.zipapp_build dist/midstream.pyz

format: $(VENV)/.dev
	$(BIN)/ruff format src tests tools
	$(BIN)/ruff check --fix src tests tools

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
