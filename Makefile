# Every target does its own set-up: a virtual environment, the dependencies (once for each pyproject.toml), this package.
# The package is installed plainly and anew each time, so that what runs is what a user gets, and nothing stale.

PYTHON ?= $(shell for p in python3 python python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
DEPENDENCIES := $(VENV)/.dependencies

# A PYTHONPATH, or packages of the user's home, would hide what is missing here.
unexport PYTHONPATH PYTHONHOME
export PYTHONNOUSERSITE := 1

.PHONY: demo test test-all checks install clean

demo: install
	$(BIN)/python -m onnx_netadapt.models.demo demo
	$(BIN)/onnx-netadapt demo/digits.onnx --budget 0.5x --data demo/digits.npz

# Files stay whole (--dist loadfile): they share what is dear to make. A worker that dies is not started again: it would
# run the test that killed it once more.
test: checks
	$(BIN)/pytest -n 2 --dist loadfile --max-worker-restart 0

test-all: checks
	$(BIN)/pytest -n 2 --dist loadfile --max-worker-restart 0 -m ""

checks: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	cd $(VENV) && $(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p onnx_netadapt

# setuptools would pack what an earlier build left in build/, files deleted since then included.
install: $(DEPENDENCIES)
	rm -rf build
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --force-reinstall .
	rm -rf build

$(DEPENDENCIES): pyproject.toml
	@test -n "$(PYTHON)" || { echo "onnx-netadapt needs Python 3.11 or newer; set PYTHON=/path/to/python3" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	rm -rf build
	$(BIN)/pip install --quiet "setuptools>=77" ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
