# `make quickstart` sets up .venv and meta-trains the shipped recipe; `make check` is what CI runs.
# pip reads PIP_CONSTRAINT and its other settings from the environment.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help quickstart test test-slow lint check format

help:
	@echo "make quickstart   set up .venv, meta-train the shipped recipe and measure it (minutes on two cores)"
	@echo "make test         the default test suite"
	@echo "make test-slow    the tests that take minutes each"
	@echo "make check        formatting, lint, types, layers, and the default test suite"
	@echo "make format       let ruff format and mend the code"

quickstart: .venv/installed
	$(BIN)/raymeta run quickstart

test: .venv/installed
	$(BIN)/pytest -n 2 --dist loadgroup

test-slow: .venv/installed
	$(BIN)/pytest -m slow

lint: .venv/installed
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test

format: .venv/installed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# set up anew only when the dependencies changed
.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev,quickstart]'
	touch $@
