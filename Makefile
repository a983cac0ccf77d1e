# One environment, made on first need: `make demo` and `make test` each work on a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help install demo findings test test-all check format clean

help:
	@echo "make install   make $(VENV) with everything the project needs"
	@echo "make demo      real text to a transfer report in ./hptransfer-demo/"
	@echo "make findings  studies/FINDINGS.md and its figures, from the published tables"
	@echo "make test      the fast checks, then the tests that are not slow, on every core"
	@echo "make test-all  the same with the slow tests (Ray, kills, examples, peers) and coverage"
	@echo "make check     format, lint, types and import directions only"
	@echo "make format    rewrite the code in the project's format"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable \
		'.[wiki,ray,wandb,mlflow,tensorboard,optuna,peers,dev]'
	# Its torchvision has no CPU build beside ours, and what the tests use does not need it.
	$(BIN)/python -m pip install --quiet --no-deps mup==1.0.0 torchtitan==0.3.0
	@touch $@

# What the demo needs alone: a sixth of the whole.
demo: $(VENV)/.demo
	$(BIN)/hptransfer demo

$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[wiki]'
	@touch $@

findings: $(INSTALLED)
	$(BIN)/python studies/findings.py

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A process for each core, with one thread each: tests are small, and threads would only wait.
# Slow ones start processes, clusters and compilers of their own, and run one by one.
FAST := OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --maxprocesses 8 --dist worksteal -m "not slow"

test: check
	$(FAST)

test-all: check
	$(FAST) --cov --cov-report= --cov-fail-under=0
	$(BIN)/pytest -m slow --durations=20 --cov --cov-append --cov-report=term

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) hptransfer-demo .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis
