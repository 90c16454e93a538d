# Needs Python >= 3.11 with venv, make and pip; nothing else.
PYTHON ?= python3
BIN := .venv/bin
# One stamp a set of extras, so that `make demo` does not install the test tools.
DEMO := .venv/.demo-installed
DEV := .venv/.dev-installed

.PHONY: setup demo test lint fuzz soak gpu bench clean
setup: $(DEMO)

demo: $(DEMO)
	$(BIN)/lenext demo

# A process a core, but no more than memory bears: each takes up to 3 GiB.
test: $(DEV) lint
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# An hour and more on two cores: every kind of network through the compiler's own kernels and through every export, and a
# server over tens of thousands of requests, good and damaged.
soak: $(DEV)
	$(BIN)/python -m pytest tests/soak

# On a machine with a GPU: what only that can show, and the training on it.
gpu: $(DEV)
	LENEXT_TEST_GPU=1 $(BIN)/python -m pytest tests/gpu tests/training tests/inference tests/predict tests/evaluation

# Twenty thousand damaged files through the decoder, a few minutes.
fuzz: $(DEV)
	LENEXT_FUZZ=20000 $(BIN)/python -m pytest tests/fuzz

bench: $(DEV)
	$(BIN)/python benchmarks/demo.py
	$(BIN)/python benchmarks/zoo.py
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/index.py
	$(BIN)/python benchmarks/scaled_decoding.py
	$(BIN)/python benchmarks/serving.py
	$(BIN)/python benchmarks/study.py --memory

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "LeNeXt needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv .venv

$(DEMO): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	touch $@

$(DEV): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(DEMO)

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
