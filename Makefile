# make demo   the whole pipeline on a tiny random LLaVA, on the CPU
# make test   the test suite
# make test-lowest   the test suite at the lowest versions that pyproject.toml allows
# make bench  the benchmark: docs/benchmarks.md and its plot (half an hour, 25 GB of scratch)
# make harden  kills, mutated files, full disks and a failing Hub, at full size (CAMPAIGN=small: minutes)
# make interop   other projects' loaders and trainers on our exports, each in an environment of its own
#             (PEER=saelens: one of them; CROSSLAYER_CODING=a folder or URL of that one, which pip
#             does not know; minutes, 7 GB)
# make docs   the site of docs/ into build/site; a broken link or a missing docstring is an error
# make lint   ruff and mypy
# make lock   pins today's releases of everything in tests/constraints.txt, and the lowest that
#             pyproject.toml allows in tests/constraints-lowest.txt. Commit both once the tests pass.
# Each makes its own virtual environment first, of exactly the pinned versions.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
CAMPAIGN ?= full

LOWEST_VENV ?= .venv-lowest
LOCK_VENV   ?= .venv-lock
# The campaign is about our own files, not about other libraries.
LOWEST_TESTS ?= $(addprefix tests/,llava_amber_activations builder capture hub docs/test_site.py)
# Of the time of two on two cores, a third was waiting for what the tests had started.
IN_PARALLEL ?= -n 3 --dist worksteal
# torch stays where it is until somebody moves it here; so does what makes the lock.
TORCH := 2.13.0
UV    := 0.13.9

.PHONY: demo test test-lowest bench harden interop docs lint lock clean

demo: $(VENV)/.installed
	rm -rf demo-output
	$(BIN)/llava-amber demo --output-dir demo-output

test: $(VENV)/.installed
	$(BIN)/python -m pytest $(IN_PARALLEL) tests

# Where libraries of different years meet, they warn of each other: there, a warning is no error, and
# none is printed by the commands that tests run, whose one line of error is compared.
LOWEST_WARNINGS := ignore::DeprecationWarning,ignore::FutureWarning,ignore::PendingDeprecationWarning
test-lowest: $(LOWEST_VENV)/.installed
	PYTHONWARNINGS=$(LOWEST_WARNINGS) $(LOWEST_VENV)/bin/python -m pytest $(IN_PARALLEL) \
	    -W default::DeprecationWarning -W default::FutureWarning \
	    -W default::PendingDeprecationWarning $(LOWEST_TESTS)

bench: $(VENV)/.installed
	$(BIN)/python tests/benchmarks/bench.py

harden: $(VENV)/.installed
	$(BIN)/python tests/hardening/campaign.py --size $(CAMPAIGN) $(if $(CAMPAIGN_SEED),--seed $(CAMPAIGN_SEED))

interop: $(VENV)/.installed
	$(BIN)/python tests/interop/run.py $(PEER)

# The theme's makers announce its end in 2027 at every build, which is no warning about the pages.
docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "open build/site/index.html; with the search: $(BIN)/python -m http.server -d build/site"

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.installed: pyproject.toml tests/constraints.txt
	$(call make_venv,$(VENV),tests/constraints.txt)

$(LOWEST_VENV)/.installed: pyproject.toml tests/constraints-lowest.txt
	$(call make_venv,$(LOWEST_VENV),tests/constraints-lowest.txt)

# $(1) a virtual environment of what pyproject.toml asks for, at the versions of $(2). Without build
# isolation, which would fetch today's setuptools.
define make_venv
	$(PYTHON) -m venv --clear $(1)
	$(1)/bin/python -m pip install --quiet --constraint $(2) pip setuptools
	$(1)/bin/python -m pip install --quiet --constraint $(2) --no-build-isolation --editable '.[dev]'
	$(1)/bin/python -m pip check
	$(1)/bin/python tests/support/check_pins.py $(2)
	touch $(1)/.installed
endef

lock: $(LOCK_VENV)/.installed
	{ printf '%s\n' $(PINS_HEAD); \
	  printf '%s\n' torch==$(TORCH) pip 'setuptools>=77' | $(COMPILE); } > tests/constraints.new
	{ printf '%s\n' $(LOWEST_HEAD); \
	  { printf '%s\n' torch==$(TORCH) 'setuptools>=77'; grep '^pip==' tests/constraints.new; } | \
	  $(COMPILE) --resolution lowest-direct; } > tests/constraints-lowest.new
	mv tests/constraints.new tests/constraints.txt
	mv tests/constraints-lowest.new tests/constraints-lowest.txt

COMPILE = $(LOCK_VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --all-extras \
    --no-header --annotation-style line pyproject.toml -

PINS_HEAD = \
    '\# What development and CI install: every package, for Python 3.11 and later, on any platform.' \
    '\# Made by `make lock` from pyproject.toml; not to be edited. The CUDA packages are those that' \
    '\# torch asks for on Linux in its default build; a CPU build asks for none of them.'
LOWEST_HEAD = \
    '\# The lowest versions that pyproject.toml allows, with the newest of what those ask for,' \
    '\# for Python 3.11; torch is the one of constraints.txt. Made by `make lock`; not to be edited.'

$(LOCK_VENV)/.installed: Makefile
	$(PYTHON) -m venv --clear $(LOCK_VENV)
	$(LOCK_VENV)/bin/python -m pip install --quiet uv==$(UV)
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST_VENV) $(LOCK_VENV) .venv-interop-* demo-output build/site
