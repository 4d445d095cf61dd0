# `make demo` and `make test` work from a bare clone: the first call makes .venv and installs into it
# the versions pinned in constraints.txt, later calls find that done.
#   PYTHON=python3.12    which interpreter makes .venv (3.11 or newer)
#   WORKERS=2            test processes
#   DEMO_ARGS, TEST_ARGS more arguments for `crossalign demo` and pytest

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint resources benchmark-cpu clean
.DELETE_ON_ERROR:

# Threads that sleep while they wait: the demo's many small steps also finish beside other work.
demo: $(VENV)/.installed-train
	OMP_WAIT_POLICY=passive $(BIN)/crossalign demo --output runs/demo --overwrite $(DEMO_ARGS)

# One thread per worker: two workers with two threads each only wait for one another.
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not cuda and not slow" $(TEST_ARGS)

# What takes minutes: thirty kills of a run, the launches recorded with Triton's compiler, three ranks,
# and two type checkers.
test-slow: $(VENV)/.installed-types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "slow and not cuda" $(TEST_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The registers, stack and shared memory of every shipped kernel, compiled here without a GPU.
resources: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.kernel_resources --write

# Timings on this CPU, one process so that nothing else runs beside them.
benchmark-cpu: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/benchmarks_cpu --benchmark-enable $(TEST_ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info runs .pytest_cache .mypy_cache .ruff_cache .benchmarks

$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	@echo "make: installing the versions of constraints.txt into $(VENV); minutes on the first call"
	@$(BIN)/python -m pip install -qq --constraint constraints.txt --editable ".[$*]"
	@touch $@

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "make: no $(PYTHON) here; install Python 3.11 or newer, or name yours: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: crossalign needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version 2>&1); name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "make: $(PYTHON) has no venv module; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
