# Two commands do all the set-up: `make quickstart` and `make test`.
# Another Python: make PYTHON=python3.12 ...   Another build of torch: make PIP_ARGS="--extra-index-url ADDRESS" ...
SHELL := bash
PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
INSTALL := $(VENV)/bin/pip install --quiet $(PIP_ARGS) --constraint constraints.txt
ACTIVATE := source $(VENV)/bin/activate

.PHONY: quickstart install dev check test test-all docs clean

quickstart: install
	$(ACTIVATE) && deepspeed launch/train.py --deepspeed ds_configs/zero2.json

install: $(VENV)/installed
dev: $(VENV)/developed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing pinned versions into $(VENV) (a few minutes)"
	$(INSTALL) torch
	$(INSTALL) --editable .
	touch $@

$(VENV)/developed: $(VENV)/installed
	$(INSTALL) --editable ".[dev,tensorboard]"
	touch $@

check: dev
	$(ACTIVATE) && ruff check . && ruff format --check . && mypy && pytest tests/unit/test_floors.py

# One thread a process: tests start ranks of their own, and two workers share the cores. In the order of the folders:
# the long files first, so that both workers end together.
PYTEST := OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile --no-loadscope-reorder
test: dev
	$(ACTIVATE) && $(PYTEST) -m "not slow"

test-all: dev
	$(ACTIVATE) && $(PYTEST)

docs: $(VENV)/documented
	$(ACTIVATE) && sphinx-build -W --keep-going -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

$(VENV)/documented: $(VENV)/installed
	$(INSTALL) --editable ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) docs/_build .pytest_cache .mypy_cache .ruff_cache
