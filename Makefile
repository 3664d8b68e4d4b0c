# One command each; `make` alone lists them. Everything is installed into .venv, which
# needs Python 3.11 or newer, make and a package index that pip can reach.
#   ARGS    more arguments for the command:  make test ARGS="-k where -x"
#   PYTHON  another interpreter:             make test PYTHON=python3.13

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test test-s3 test-services check format lint crash bench docs reference clean

ARGS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
SOURCES := geneva $(wildcard udfs)
PYTHON_FILES := $(SOURCES) tests $(wildcard benchmarks)

# The first of these that is new enough, unless PYTHON was given.
CANDIDATES := python3 python3.14 python3.13 python3.12 python3.11 python
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in $(CANDIDATES); do \
	"$$p" -c '$(NEW_ENOUGH)' 2>/dev/null && { echo "$$p"; break; }; done)

help: ## list these targets
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## \(.*\)/  make \1	\2/p' Makefile | expand -t 16

demo: .venv/.dev ## backfill a small table, from nothing to values
	@$(BIN)/geneva demo $(ARGS)

test: .venv/.dev .venv-s3/.done ## every test but the crash and the slow ones
	@$(BIN)/python -m pytest -q $(ARGS)

test-s3: .venv/.dev .venv-s3/.done ## the integration tests on an S3 server, but those that need a disk
	@$(BIN)/python -m pytest -q --store=s3 tests/integration $(ARGS)

test-services: .venv/.dev ## what needs a server beside the tests, which they start themselves
	@$(BIN)/python -m pytest -q -m "services and not crash" $(ARGS)

check: lint ## format, lint, types, contracts, unit and property tests
	@$(BIN)/python -m pytest -q --timeout=60 $(wildcard tests/unit tests/property) $(ARGS)

format: .venv/.dev ## rewrite the files as the formatter wants them
	@$(BIN)/ruff format $(PYTHON_FILES)
	@$(BIN)/ruff check --fix $(PYTHON_FILES)

lint: .venv/.dev ## format, lint, types, import contracts and prose, without tests
	@$(BIN)/ruff format --check $(PYTHON_FILES)
	@$(BIN)/ruff check $(PYTHON_FILES)
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m tests.support.prose

crash: .venv/.dev .venv-s3/.done ## kill every process at every bad moment, and the slow tests
	@$(BIN)/python -m pytest -q -m "crash or slow" $(ARGS)

bench: .venv/.bench .venv-daft/.done ## measure against the peers
	@$(BIN)/python -m benchmarks --out docs/benchmarks.md $(ARGS)

docs: .venv/.docs ## run every example, follow every link, write the reference to site/
	@$(BIN)/python -m pytest -q --doctest-modules --doctest-glob='*.md' $(SOURCES) docs $(wildcard README.md) $(ARGS)
	@$(BIN)/python -m pytest -q tests/unit/test_house.py -k links
	@$(BIN)/pdoc -d numpy -o site geneva

reference: .venv/.dev ## write docs/reference from the code
	@$(BIN)/python -m tests.support.reference

clean: ## remove the environments, the caches and what the targets made
	rm -rf .venv .venv-daft .venv-s3 build dist site demo-data .mypy_cache .ruff_cache .pytest_cache \
		.hypothesis .import_linter_cache
	find $(PYTHON_FILES) -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps. An interrupted install leaves none, so the next make finishes it; an environment whose
# interpreter has gone (a newer Python, a moved folder) is made anew.

.venv/.dev: pyproject.toml constraints.txt
	@"$(PYTHON)" -c '$(NEW_ENOUGH)' 2>/dev/null || { \
		echo "Geneva needs Python 3.11 or newer; found: $(or $(PYTHON),none). Name one with make PYTHON=..." >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear .venv || { \
		echo "No environment could be made in .venv (on Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; }
	@echo "installing into .venv"
	@$(PIP) -e ".[dev]"
	@touch $@

.venv/.bench: .venv/.dev
	@$(PIP) -e ".[dev,bench]"
	@touch $@

.venv/.docs: .venv/.dev
	@$(PIP) -e ".[dev,docs]"
	@touch $@

# daft needs an older pyarrow than Geneva; the benchmarks start it as another process.
.venv-daft/.done: pyproject.toml
	@"$(PYTHON)" -m venv --clear .venv-daft
	@.venv-daft/bin/python -m pip install -q --disable-pip-version-check "pip>=25.1"
	@.venv-daft/bin/python -m pip install -q --disable-pip-version-check --group daft
	@touch $@

# The tests' S3 server wants an older python-dateutil than Geneva's environment holds.
.venv-s3/.done: pyproject.toml
	@"$(PYTHON)" -m venv --clear .venv-s3
	@.venv-s3/bin/python -m pip install -q --disable-pip-version-check "pip>=25.1"
	@.venv-s3/bin/python -m pip install -q --disable-pip-version-check --group s3
	@touch $@
