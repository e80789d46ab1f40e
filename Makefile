# Two commands need nothing but make and Python >= 3.11:
#   make demo   compress, fine-tune and squeeze a small ALBERT, offline
#   make test   lint, types, the whole test suite, the documentation
# one takes about half an hour:
#   make test-matrix   the tests of the Hugging Face part, on the oldest and the newest supported transformers
# and one takes hours:
#   make bench  all benchmarks, into docs/benchmarks.md; SUITES='layers import' runs some
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OLDEST := .venv-oldest
OLDEST_STAMP := $(OLDEST)/.installed
HF_TESTS = $(shell grep -l 'integrations.transformers' tests/test_*.py)

.PHONY: demo test test-matrix lint types docs bench clean

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

$(OLDEST_STAMP): pyproject.toml .ci/constraints.txt .ci/oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --constraint .ci/constraints.txt --constraint .ci/oldest.txt --editable '.[test]'
	@touch $@

test-matrix: $(STAMP) $(OLDEST_STAMP)
	for venv in $(OLDEST) $(VENV); do \
	  $$venv/bin/python -c 'import transformers; print("transformers", transformers.__version__)' && \
	  OMP_NUM_THREADS=1 $$venv/bin/python -m pytest -n 2 $(HF_TESTS) || exit 1; \
	done

bench: $(STAMP)
	$(BIN)/python tests/benchmarks/run.py $(SUITES)

clean:
	rm -rf $(VENV) $(OLDEST) docs/_build build dist *.egg-info
