# Two commands need nothing but make and Python >= 3.11:
#   make demo   compress, fine-tune and squeeze a small ALBERT, offline
#   make test   lint, types, the whole test suite, the documentation
# and one takes an hour:
#   make bench  all benchmarks, into docs/benchmarks.md; SUITES='layers import' runs some
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint types docs bench clean

$(STAMP): pyproject.toml .ci/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tnmpo needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + "; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint .ci/constraints.txt --editable '.[all]'
	@touch $@

demo: $(STAMP)
	$(BIN)/tnmpo demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/sphinx-build --fail-on-warning --quiet -b html docs docs/_build/html

test: lint types docs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

bench: $(STAMP)
	$(BIN)/python tests/benchmarks/run.py $(SUITES)

clean:
	rm -rf $(VENV) docs/_build build dist *.egg-info
