PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# Of all that a build says, one line for each file compiled, and why a library was not built.
SHELL := bash
.SHELLFLAGS := -o pipefail -c
COMPILED := sed -unE 's,^ *(\[[0-9]+/[0-9]+\]).* [^ ]*(csrc/[a-z]+/[a-z_]+\.cp?[pu]) .*,  \1 \2,p; s/^ *(sgdkern: )/\1/p'
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo setup build test test-slow test-gpu lint types bench docs check
help:      ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 10
demo: $(READY)      ## the main job on scikit-learn's digits: train, probe, label phases, clean, report
	$(BIN)/sgdkern run
setup: $(READY)     ## .venv with the pinned dependencies and the compiled kernels
build:     ## compile the kernels again
	touch setup.py && $(MAKE) setup
test: $(READY)      ## the test suite
	$(BIN)/python -m pytest
test-slow: $(READY) ## the tests that take minutes: sanitizers, whole runs, statistics over many seeds
	$(BIN)/python -m pytest -m "slow and not gpu"
test-gpu: $(READY)  ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu
lint: $(READY)      ## style, docstrings, import contract
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports
types: $(READY)     ## mypy, strict
	$(BIN)/mypy
bench: $(READY)     ## time and memory against plain autograd, and the installed peers
	$(BIN)/sgdkern bench
docs: $(READY)      ## the README's generated parts and every docstring example, checked
	$(BIN)/python -m pytest --doctest-modules sgdkern
check: lint types test  ## all that CI asks for, slow tests excepted

.venv:
	$(PYTHON) -m venv .venv && $(BIN)/python -m pip install --quiet --upgrade pip
$(READY): requirements.txt pyproject.toml setup.py $(wildcard csrc/*/*) | .venv
	@echo "Installing PyTorch and all else that is pinned ..."
	$(BIN)/pip install -r requirements.txt
	@echo "Compiling the kernels: some two minutes on two cores, some more where nvcc compiles those for GPUs too ..."
	@$(BIN)/pip install -v --no-build-isolation --no-deps -e . 2>&1 | tee .venv/compile.log | $(COMPILED) \
	  || { tail -40 .venv/compile.log; echo "Compiling failed: all it said is in .venv/compile.log"; exit 1; }
	@touch $@ && $(BIN)/python -m sgdkern.doctor
