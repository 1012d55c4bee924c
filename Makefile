# Every target does its own set-up: the first makes .venv with the pinned install, later ones reuse it.
#   make demo      the main job on a built-in task, offline        make lint      ruff
#   make test      the tests (TESTS="-m slow": the slow ones)      make types     mypy --strict
#   make check     all that .ci/run does but the demonstration     make floors    who may import whom
#   make format    put the source in shape                         make docs      the pages, in docs/_build/html
#   make clean     remove .venv and the caches
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
TESTS  ?=

.DEFAULT_GOAL := demo
.DELETE_ON_ERROR:
.PHONY: demo test lint types floors docs check format clean

demo: $(STAMP)
	$(BIN)/causalmad demo

# Two processes of one thread each beat one of two: the models are small.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(TESTS)

lint: $(STAMP)
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

floors: $(STAMP)
	$(BIN)/lint-imports

# A warning is an error: a link that leads nowhere, a page in no list, a docstring that cannot be read.
docs: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build -W --keep-going -q docs docs/_build/html

check: lint types floors docs test

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "The pins in constraints.txt need Python 3.11 or newer: make PYTHON=python3.11 ..."; \
	  echo "On Python 3.10: pip install -e . (without the pins)."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch is named together with its pin, so that a CPU wheel is taken where one is configured and nothing replaces it
# later. Two -q: only errors are shown.
$(STAMP): setup.cfg pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the pinned packages into $(VENV): a few minutes, once."
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt torch -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) docs/_build docs/reference/python build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage htmlcov
	find causalmad tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
