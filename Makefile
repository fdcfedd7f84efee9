# make demo and make test do all the set-up on a fresh machine (Python 3.11 or later, pip, make).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
STUBS := out/tensorrt-stubs
SHAPES := reference/shapes/checkpoint
FOLDERS := calibration engines export reference runtime

# Tests start a hundred processes; without bytecode, as images of containers often ask, each compiles the sources again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test test-fast lint typecheck-tensorrt bench docs clean

setup: $(STAMP)

# The strict editable install lets mypy follow the mapped folders; it links the files it finds, hence the dependency on them.
$(STAMP): pyproject.toml setup.py $(shell find $(FOLDERS) -name '*.py' -o -name '*.html' -o -name '*.css' -o -name '*.js')
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0 "setuptools>=77"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --config-settings editable_mode=strict \
		--editable ".[cpu,openvino,export,serve,tensorrt-rtx,dev]"
	touch $(STAMP)

demo: setup
	$(BIN)/python -m benchmarks.quality.demo --checkpoint $(SHAPES) --output out/demo

# Two workers, each of whole files, so that what a file's tests share is made once; tests/conftest.py orders them.
test: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# The tests that start no process, neither export nor calibrate and take no seconds: a minute and a half or less.
test-fast: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m "not process and not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff check --preview --select PLW1514 . # text files say their encoding, which is not UTF-8 on every Windows
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers 2

# Against the real APIs' signatures, of TensorRT and of TensorRT for RTX in its place; plain lint takes whatever they are
# asked for as Any. After lint only the modules that use them are checked again.
typecheck-tensorrt: setup
	$(BIN)/python .ci/tensorrt_stubs.py $(STUBS)
	MYPYPATH=$(STUBS) $(BIN)/mypy
	MYPYPATH=$(STUBS)/rtx $(BIN)/mypy

bench: setup
	$(BIN)/qwen-image export -m $(SHAPES) out/bench/bundle
	$(BIN)/python -m benchmarks.speed.picture --bundle out/bench/bundle
	$(BIN)/python -m benchmarks.quality.bench_quality --bundle out/bench/bundle
	$(BIN)/python -m benchmarks.reliability.soak --engine onnxruntime --bundle out/bench/bundle
	$(BIN)/python -m benchmarks.reliability.soak --engine openvino --bundle out/bench/bundle
	$(BIN)/python -m benchmarks.reliability.serve --bundle out/bench/bundle
	$(BIN)/python -m benchmarks.reliability.fuzz --bundle out/bench/bundle
	$(BIN)/python -m benchmarks.quantisation.run
	$(BIN)/python -m benchmarks.quantisation.fp8_attention
	$(BIN)/qwen-image export -m $(SHAPES) out/bench/int8 --precision int8
	$(BIN)/python -m benchmarks.common.calibration_inputs out/bench/inputs
	$(BIN)/qwen-image calibrate -m $(SHAPES) out/bench/calibration --prompts out/bench/inputs/prompts.txt \
		--images out/bench/inputs/images --reference-resolution 192 --steps 20 \
		--size 128x128 192x192 256x256 192x128 128x192 --precision fp8 --target-error 0.0235
	$(BIN)/qwen-image export -m $(SHAPES) out/bench/twin-int8 --target tensorrt-twin --precision int8 \
		--calibration out/bench/calibration
	$(BIN)/qwen-image export -m $(SHAPES) out/bench/twin-fp8 --target tensorrt-twin --precision fp8 \
		--calibration out/bench/calibration --recipe out/bench/calibration/recipe-tensorrt-fp8.json
	$(BIN)/python -m benchmarks.quality.judge out/bench/bundle out/bench/int8 out/bench/twin-fp8 out/bench/twin-int8
	$(BIN)/python -m benchmarks.speed.run --profile
	$(BIN)/python -m benchmarks.speed.attention
	$(BIN)/python -m benchmarks.speed.reference_images
	$(BIN)/python -m benchmarks.quality.modes
	$(BIN)/python -m benchmarks.solvers.step_cache
	$(BIN)/python -m benchmarks.quantisation.rotations
	$(BIN)/python -m benchmarks.full_size.export_memory --work out/bench/memory --output benchmarks/results/export_memory.json
	$(BIN)/python -m benchmarks.quality.shapes
	$(BIN)/python -m benchmarks.quality.parity

# The figures of README.md and docs/, from benchmarks/results/; the tests fail where they differ.
docs: setup
	$(BIN)/python -m benchmarks.documents.write

clean:
	rm -rf $(VENV) build out *.egg-info
