# What people run and what CI runs. `make` alone lists the targets; verbose output goes to .lab/logs.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory --no-builtin-rules
.NOTPARALLEL:

PYTHON := .venv/bin/python
# Without byte code every start of Airflow costs seconds more; a foreign PYTHONPATH would come before our libraries.
unexport PYTHONDONTWRITEBYTECODE PYTHONPATH PYTHONHOME VIRTUAL_ENV

STARTED_AT := $(shell date +%s)
NAME ?= demo
# What of the lab's tests runs: `make test-lab LAB_TESTS=tests/lab/test_upgrade.py`
LAB_TESTS ?= tests/lab

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  NAME=demo|test|bench chooses the lab of lab-up, lab-down and lab-status."

.PHONY: venv
venv: .venv/installed ## make the Python environment in .venv (again when requirements.txt changed)

.venv/installed: requirements.txt lab/venv.sh
	@bash lab/venv.sh

.PHONY: demo
demo: venv ## start the lab and Airflow, upgrade all five components, show the figures
	@DEMO_STARTED_AT=$(STARTED_AT) $(PYTHON) -m lab.demo

.PHONY: down
down: venv ## stop the demo's Airflow and lab
	@$(PYTHON) -m lab.airflow down --name demo
	@$(PYTHON) -m lab down --name demo

.PHONY: test
test: lint test-unit test-dags test-lab ## everything that CI runs

.PHONY: test-unit
test-unit: venv ## fast tests without network, sleep or clock; warnings are errors
	@# One worker more than processors: some tests wait for real time to pass.
	@$(PYTHON) -m pytest -q -n $$(( $$(nproc) + 1 )) --dist worksteal tests/unit -W error

.PHONY: test-dags
test-dags: venv ## what holds for every DAG
	@$(PYTHON) -m pytest -q tests/dags

.PHONY: test-lab
test-lab: venv ## tests against a real cluster (root on Debian 12; skipped loudly elsewhere)
	@$(PYTHON) -m pytest -q -m "not slow" $(LAB_TESTS)

.PHONY: test-lab-long
test-lab-long: venv ## what of the lab's tests takes long, on a machine that does nothing else
	@$(PYTHON) -m pytest -q -m slow tests/lab

.PHONY: lint
lint: venv ## style, formatting, types, import contracts
	@.venv/bin/ruff check --quiet .
	@.venv/bin/ruff format --quiet --check . || { .venv/bin/ruff format --diff . 2>&1 | tail -40; exit 1; }
	@.venv/bin/mypy
	@mkdir -p .lab/logs
	@PYTHONPATH=plugins .venv/bin/lint-imports --no-cache > .lab/logs/imports.log 2>&1 || { cat .lab/logs/imports.log; exit 1; }
	@grep '^Contracts:' .lab/logs/imports.log

.PHONY: bench
bench: bench-upgrade bench-failures bench-gate-power ## all benchmarks

.PHONY: bench-upgrade
bench-upgrade: venv ## the procedure against a plain patch-and-wait and the old runbook's fixed waits
	@$(PYTHON) -m benchmarks.upgrade

.PHONY: bench-failures
bench-failures: venv ## how soon a broken image on the third component is named, ten times each
	@$(PYTHON) -m benchmarks.failures

.PHONY: bench-gate-power
bench-gate-power: venv ## the metric gate's verdicts over simulated series; no lab
	@PYTHONPATH=plugins $(PYTHON) -m benchmarks.gate_power

.PHONY: bench-waits
bench-waits: venv ## a thousand rollouts waited for in one triggerer, against one watch for each
	@PYTHONPATH=plugins $(PYTHON) -m benchmarks.waits

.PHONY: bench-backup
bench-backup: venv ## 880 MiB archived, encrypted and uploaded, against the old runbook, restic and a shell stream
	@PYTHONPATH=plugins $(PYTHON) -m benchmarks.backup

.PHONY: bench-capture
bench-capture: venv ## 1,000 to 66,000 objects captured from a real API server
	@PYTHONPATH=plugins $(PYTHON) -m benchmarks.capture

.PHONY: bench-kills
bench-kills: venv ## kill everything at every step of an upgrade and read how it ended (BENCH_CASES, BENCH_LIMIT)
	@$(PYTHON) -m benchmarks.kills

.PHONY: mutation
mutation: venv ## how many small mistakes in the decisions the unit tests notice; goes on where it stopped
	@$(PYTHON) -m benchmarks.mutation

.PHONY: residue
residue: venv ## start and stop a lab ten times and compare the machine before and after
	@LAB_ROUNDS=10 $(PYTHON) -m pytest -q tests/lab/test_residue.py

.PHONY: lab-up
lab-up: venv ## start a lab with the whole system in it
	@$(PYTHON) -m lab up --name $(NAME)

.PHONY: lab-down
lab-down: venv ## stop a lab; nothing of it stays but logs
	@$(PYTHON) -m lab down --name $(NAME)

.PHONY: lab-status
lab-status: venv ## what of a lab runs
	@$(PYTHON) -m lab status --name $(NAME)

.PHONY: docs
docs: venv ## write docs/runbooks.md from the docstrings of the DAGs
	@$(PYTHON) docs/generate.py

.PHONY: lock
lock: venv ## compile requirements.in to requirements.txt with hashes
	@.venv/bin/uv pip compile --quiet requirements.in -p 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links -o requirements.txt

.PHONY: format
format: venv ## put all Python files into the project's format
	@.venv/bin/ruff check --quiet --fix . ; .venv/bin/ruff format --quiet .
