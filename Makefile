# make demo   the whole pipeline on a tiny random LLaVA, on the CPU
# make test   the test suite
# make bench  the benchmark: a table and a plot in tests/benchmarks (half an hour, 25 GB of scratch)
# make harden  kills, mutated files, full disks and a failing Hub, at full size (CAMPAIGN=small: minutes)
# They make their own virtual environment first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
CAMPAIGN ?= full

.PHONY: demo test bench harden lint clean

demo: $(VENV)/.installed
	rm -rf demo-output
	$(BIN)/llava-amber demo --output-dir demo-output

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 tests

bench: $(VENV)/.installed
	$(BIN)/python tests/benchmarks/bench.py

harden: $(VENV)/.installed
	$(BIN)/python tests/hardening/campaign.py --size $(CAMPAIGN) $(if $(CAMPAIGN_SEED),--seed $(CAMPAIGN_SEED))

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch first and by itself: its version is pinned before anything else can ask for a newer one.
$(VENV)/.installed: pyproject.toml tests/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint tests/constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint tests/constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo-output
