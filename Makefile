# Everything is installed into .venv; nothing outside of this folder is touched.
PYTHON ?= python3
TORCH ?= torch==2.13.0
# Another index for torch alone, for example PyTorch's own with CPU builds.
TORCH_INDEX ?=
BIN := .venv/bin
DEMO := runs/demo
DEMO_FRAMES ?= 3M

.PHONY: setup demo test test-long lint mutants bench chaos soak

setup: .venv/installed

.venv/installed: pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Playfield needs Python 3.11 or newer and $(PYTHON) is older; on Debian or Ubuntu: sudo apt-get install python3.11 python3.11-venv, then make setup PYTHON=python3.11"; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments; on Debian or Ubuntu: sudo apt-get install python3-venv"; exit 2; }
	$(PYTHON) -m venv .venv
	@echo "Installing torch (200 MB) and the other packages into .venv; this takes a minute or more."
	$(BIN)/pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,doom,miniworld]'
	@$(BIN)/python -c 'from ctypes.util import find_library as f; import sys; sys.exit(not (f("EGL") and f("GLU")))' || \
		echo "MiniWorld draws with EGL and GLU, which are missing; on Debian or Ubuntu: sudo apt-get install libegl1 libglu1-mesa"
	@touch $@

# Train a first agent, measure it beside the baselines, record it, write a report. Run again, it goes on from what is there.
demo: setup
	@if [ -f $(DEMO)/config.json ]; then $(BIN)/python train.py resume $(DEMO); \
	else $(BIN)/python train.py ppo --env Bowling-ram-v0 --total-frames $(DEMO_FRAMES) --run-dir $(DEMO); fi
	$(BIN)/python evaluate.py $(DEMO) random:Bowling-ram-v0 --episodes 20

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest --quiet --numprocesses 2 --dist loadfile --no-loadscope-reorder -m "not slow"

test-long: lint
	$(BIN)/python -m pytest --quiet --numprocesses 2 --dist loadfile --no-loadscope-reorder

mutants: setup
	$(BIN)/python -m tests.mutants

# The long versions of what keeps runs safe: 204 kills, a million broken files, three thousand command lines.
chaos: setup
	$(BIN)/python -m pytest --quiet -p no:xdist --kills 204 --inputs 125000 --command-lines 3000 \
		tests/test_resume.py tests/test_hostile.py tests/test_command_lines.py tests/training/test_crash.py \
		tests/training/test_disk.py tests/training/test_non_finite.py tests/training/test_fuzz.py

soak: setup
	$(BIN)/python benchmarks/soak.py

bench: setup
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/scaling.py
