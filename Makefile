# Everything runs from .venv in this folder; no environment needs to be activated.
#   make install PYTHON=python3.12                                            another interpreter

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
DEMO := $(BIN)/mbrl demo
WORKERS ?= 2

# Small networks run best with one thread a process; it also makes results independent of the number of cores.
export OMP_NUM_THREADS := 1
unexport PYTHONHOME

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help install demo browser test test-slow lint types floors format docs clean distclean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## make .venv and install the platform in it (quick when nothing changed)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "install: needs Python 3.11 or newer, '$(PYTHON)' is: $$($(PYTHON) --version 2>&1 || true)"; \
	  echo "install: name another one: make install PYTHON=python3.12"; exit 2; }
	@echo "== install: virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "install: '$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt install python3-venv"; exit 2; }

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "== install: torch (the largest part, some minutes on a slow line)"
	@$(PIP) install --quiet --constraint constraints.txt torch
	@echo "== install: the platform and its tools"
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[dev,dmc,docs]'
	@touch $@

demo: install ## learn the dynamics of Pendulum-v1 and plan with them, about two minutes
	@echo "== demo: $(DEMO)"
	@$(DEMO)

browser: ## Chromium for the tests of pages, where Debian's packages can be installed
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && echo "== browser: installing chromium" && \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium chromium-driver >/dev/null; } || \
	  echo "browser: no chromium and no way to install it here; the tests of pages in a browser are skipped"

test: install browser lint types floors ## everything that must pass: lint, types, floors and the quick tests
	@echo "== test: quick tests, $(WORKERS) processes"
	@$(BIN)/pytest -q -m "not slow" -n $(WORKERS) --dist worksteal --ignore tests/test_floors.py

test-slow: install ## the tests that `make test` leaves out
	@echo "== test: slow tests, $(WORKERS) processes"
	@$(BIN)/pytest -q -m slow -n $(WORKERS) --dist worksteal

lint: install ## ruff: rules and formatting
	@echo "== lint: ruff"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { \
	  echo "lint: not formatted (make format):"; $(BIN)/ruff format --check . ; exit 1; }

types: install ## mypy, strict
	@echo "== types: mypy"
	@$(BIN)/mypy --no-error-summary

floors: install ## imports only point down
	@echo "== floors: imports point down"
	@$(BIN)/pytest -q tests/test_floors.py

format: install ## let ruff rewrite what it can
	@echo "== format: ruff"
	@$(BIN)/ruff check --quiet --fix . || true
	@$(BIN)/ruff format --quiet .

docs: install ## build site/ from docs/, README.md and the docstrings; no network needed to read it
	@echo "== docs: sphinx, warnings are errors"
	@rm -rf site
	@$(BIN)/sphinx-build -q -E -W --keep-going -b html -d build/doctrees docs site
	@echo "docs: $(CURDIR)/site/index.html"

clean: ## remove what was built and cached (not .venv, not runs)
	@rm -rf build dist site .mypy_cache .ruff_cache .pytest_cache MUJOCO_LOG.TXT
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean ## clean, and remove .venv as well
	@rm -rf $(VENV)
