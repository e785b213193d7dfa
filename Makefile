# Every target sets up what it needs: a Python 3.11+ interpreter, make and the package registries are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LEARN := .venv-learn

.DEFAULT_GOAL := help
.PHONY: help up test check format model bench bench-store bench-placement bench-scale chaos fuzz e2e lock clean

help: ## this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/core: requirements/core.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Felloe needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/core.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/dev: $(VENV)/core requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

up: $(VENV)/core ## set up, then start the demo network: one hub, two spokes, the tiny model; Ctrl-C ends it
	@$(BIN)/felloe demo

# Most tests wait more than they work, so several run at once, but not those that hold whole machines full of processes to
# real seconds. Even these a busy machine may break: what fails is run once more, alone, and has to pass then.
ALONE = tests/conformance/engines tests/e2e tests/integration
AGAIN = $(BIN)/python -m pytest --last-failed --last-failed-no-failures none

test: check ## set up, check and test everything that is quick (under 12 minutes on 2 cores)
	$(BIN)/python -m pytest -n 3 --dist loadfile $(ALONE:%=--ignore=%) || $(AGAIN)
	$(BIN)/python -m pytest $(ALONE) || $(AGAIN)

check: $(VENV)/dev ## formatting, lint, types, floors, and what the docs name
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/docs

format: $(VENV)/dev ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

e2e: $(VENV)/dev ## the slow tests: 50 kills in mid-stream, long runs
	$(BIN)/python -m pytest -m slow

CHAOS ?= --seconds 1800 --seed 1

chaos: $(VENV)/dev ## half an hour of faults on a network under load; make chaos CHAOS="--seconds 600 --seed 7"
	PYTHONPATH=tests $(BIN)/python -m chaos $(CHAOS)

SECONDS ?= 600

$(VENV)/fuzz: $(VENV)/dev requirements/fuzz.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/fuzz.txt
	@touch $@

fuzz: $(VENV)/fuzz ## look for input that breaks what reads a stranger's: ten minutes; make fuzz SECONDS=60
	PYTHONPATH=tests $(BIN)/python -m fuzz --seconds $(SECONDS)

bench: $(VENV)/dev ## every benchmark beside its peers; takes a while
	$(BIN)/python benchmarks/gateway.py
	$(BIN)/python benchmarks/resume.py
	PYTHONPATH=tests $(BIN)/python benchmarks/leader.py
	$(BIN)/python benchmarks/idle.py
	PYTHONPATH=tests $(BIN)/python benchmarks/slow_cards.py

bench-placement: $(VENV)/dev ## what models take, how good plans are, how soon they are so; about 20 minutes
	PYTHONPATH=tests $(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/plan.py
	PYTHONPATH=tests $(BIN)/python benchmarks/convergence.py

bench-store: $(VENV)/dev ## the store beside cp and b3sum, models from other nodes beside curl; root on Linux; half an hour
	PYTHONPATH=tests $(BIN)/python benchmarks/store.py
	PYTHONPATH=tests $(BIN)/python benchmarks/transfer.py
	PYTHONPATH=tests $(BIN)/python benchmarks/transfer_latency.py

SCALE ?= --spokes 100,500,1000

bench-scale: $(VENV)/dev ## what a thousand nodes cost three hubs, and how fast they learn; make bench-scale SCALE="--spokes 100"
	PYTHONPATH=tests $(BIN)/python benchmarks/scale.py $(SCALE)

$(LEARN)/ready: $(VENV)/core requirements/learn.txt
	@test -x $(LEARN)/bin/python || $(PYTHON) -m venv $(LEARN)
	$(LEARN)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(LEARN)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/learn.txt
	$(LEARN)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

model: $(LEARN)/ready ## train the tiny model anew from its recipe
	$(LEARN)/bin/python -m felloe.learning models/tiny-python/recipe.toml

UV_LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--custom-compile-command 'make lock' --upgrade

lock: $(VENV)/core ## resolve and pin every dependency by hash
	$(BIN)/python -m pip install --quiet uv
	$(UV_LOCK) pyproject.toml requirements/build.in -o requirements/core.txt
	$(UV_LOCK) pyproject.toml requirements/build.in requirements/dev.in -o requirements/dev.txt
	$(UV_LOCK) requirements/fuzz.in -o requirements/fuzz.txt
	$(UV_LOCK) pyproject.toml requirements/build.in --extra learn -o requirements/learn.txt

clean: ## remove what the targets above made
	rm -rf $(VENV) $(LEARN) benchmarks/bin
