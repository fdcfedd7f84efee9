# make demo and make test do all the set-up on a fresh machine (Python 3.11 or later, pip, make).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FOLDERS := calibration engines export reference runtime

.PHONY: setup demo test lint bench clean

setup: $(STAMP)

# The strict editable install lets mypy follow the mapped folders; it links the files it finds, hence the dependency on them.
$(STAMP): pyproject.toml $(wildcard $(FOLDERS:%=%/*.py) reference/shapes/*.py runtime/commands/*.py)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0 "setuptools>=77"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --config-settings editable_mode=strict \
		--editable ".[cpu,openvino,export,dev]"
	touch $(STAMP)

demo: setup
	$(BIN)/python benchmarks/demo.py --checkpoint reference/shapes/checkpoint --output out/demo

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/qwen-image export -m reference/shapes/checkpoint out/bench/bundle
	$(BIN)/python benchmarks/picture.py --bundle out/bench/bundle
	$(BIN)/python benchmarks/quantisation.py
	$(BIN)/python benchmarks/speed.py --profile
	$(BIN)/python benchmarks/export_memory.py --work out/bench/memory --output benchmarks/results/export_memory.json
	$(BIN)/python benchmarks/shapes.py
	$(BIN)/python benchmarks/parity.py

clean:
	rm -rf $(VENV) build out *.egg-info
