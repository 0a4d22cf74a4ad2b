# Needs python3 (3.11 or newer) and make; everything else is installed into .venv from constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

DATA ?=
SIZE ?= demo
SEED ?= 0
DAYS ?=
MINUTES ?=
ENCODER ?= moon-tiny
AIRFLOW_PORT ?= 8080
# A shop of your own gets a home of its own: ids of two shops mean different things.
MOON_HOME ?= $(if $(DATA),.moon-$(notdir $(patsubst %/,%,$(DATA))),.moon)
export MOON_HOME

.PHONY: help install demo serve airflow test lint bench clean stack stack-down stack-reset stack-test

help: ## Show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-11s %s\n", $$1, $$2}'

install: $(STAMP) ## Create .venv with everything in it (the other targets do this themselves)

$(STAMP): pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt $(if $(PIP_FIND_LINKS),--find-links "$(PIP_FIND_LINKS)") --editable ".[dev]"
	@touch $(STAMP)

demo: $(STAMP) ## The whole loop: raw catalogue to served release (DATA=dir for your own shop, SEED=1 for another release, MINUTES=8 at most)
	$(BIN)/moon demo --size $(SIZE) --seed $(SEED) --encoder $(ENCODER) $(if $(DATA),--data "$(DATA)") $(if $(DAYS),--days $(DAYS)) $(if $(MINUTES),--minutes $(MINUTES))

serve: $(STAMP) ## Serve the champion, with a visual search page
	$(BIN)/moon serve

airflow: $(STAMP) ## Airflow with our DAGs, at http://localhost:8080
	AIRFLOW_PORT=$(AIRFLOW_PORT) $(BIN)/python -m moon_ops.cli.standalone

stack: ## The whole product in containers, on the services of production (needs Docker or Podman, and no .venv)
	@$(PYTHON) -m moon_ops.cli.stack up

stack-down: ## Stop the containers; the data is kept
	@$(PYTHON) -m moon_ops.cli.stack down

stack-reset: ## Stop the containers and remove their data, after a question
	@$(PYTHON) -m moon_ops.cli.stack reset

stack-test: $(STAMP) ## Start the stack beside a running one and take it through its paces: a quarter of an hour and more
	$(BIN)/python -m pytest -m stack tests/stack

test: $(STAMP) ## All tests, on as many cores as there are, at most four
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP) ## The benchmarks, each beside a peer and the limit
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

clean: ## Remove .venv (never .moon)
	rm -rf $(VENV)
