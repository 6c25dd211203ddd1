# make demo: the main job on the embedded demo, with recommended and with published settings.
# make test: what must pass before a change lands. make test-fast: unit tests, two minutes.
# make test-nightly: what takes too long for that. make test-all: both, and every command of the
# documents. All set up .venv first.
PYTHON ?= python3
RANKS ?= 2
VENV := .venv
BIN := $(VENV)/bin
RUNS ?= runs

# A build of DeepSpeed's CPU extension that is killed leaves a lock that stalls every later run, so
# it is kept apart from any other project's.
export TORCH_EXTENSIONS_DIR ?= $(CURDIR)/$(VENV)/torch_extensions
export OMP_NUM_THREADS ?= 1
export PATH := $(CURDIR)/$(BIN):$(PATH)

# Two workers, since many tests wait for ranks or a queue; a file stays on one, for its fixtures.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# While one core checks types, the other compiles the extensions that ranks load.
MAKEFLAGS += --jobs=2
BUILD := from moram_dist.atoms import native; from moram_dist.comm.joining import join

.PHONY: demo test test-fast test-nightly test-all test-architectures check extensions setup clean

setup: $(VENV)/installed

$(VENV)/installed: requirements.txt requirements-dev.txt pyproject.toml
	@echo "installing into $(VENV) (a few minutes, once) ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup
	@$(BIN)/moram train --ranks $(RANKS) --output_dir $(RUNS)/demo
	@$(BIN)/moram train --ranks $(RANKS) --output_dir $(RUNS)/demo-published --preset published
	@$(BIN)/python tools/demo_scores.py $(RUNS)/demo $(RUNS)/demo-published

test: check extensions
	$(PYTEST)

test-fast: setup
	$(PYTEST) -m "not slow and not nightly" tests/unit

test-nightly: extensions
	$(PYTEST) -m nightly

test-all: check extensions
	WALK=1 $(PYTEST) -m ""

test-architectures: setup
	$(BIN)/python -m pytest -m architectures tests/integration/test_architectures.py

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

extensions: setup
	@$(BIN)/python -c "$(BUILD); join(load=native.load)"

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache
