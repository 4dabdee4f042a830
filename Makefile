# What to run on this machine. `make demo` needs Python 3.11 or 3.12, make and g++ only.

STORAGE ?= $(CURDIR)/runs/demo
PORT ?= 8000
UI_PORT ?= 5000

BIN := .venv/bin
# DeepSpeed's compiled operators belong to one environment and one ninja: two that share a folder
# rebuild them in turn.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export TORCH_EXTENSIONS_DIR := $(CURDIR)/.venv/torch_extensions
READY := .venv/.ready
# The first of these that is 3.11 or 3.12; trying is surer than looking, since a name may be a shim.
BASE_PYTHON = $(shell for name in python3.11 python3.12 python3; do \
	$$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null \
	&& command -v $$name && break; done)

.PHONY: help setup demo test test-slow bench check docs serve ui lock

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: $(READY) ## create .venv with the locked dependencies and DeepSpeed's CPU operators

$(READY): requirements.lock pyproject.toml cluster/build_ops.sh
	@test -n "$(BASE_PYTHON)" || { echo "Python 3.11 or 3.12 is needed, and none is here"; exit 1; }
	@command -v g++ >/dev/null || { echo "g++ is needed: DeepSpeed compiles its operators"; exit 1; }
	@$(BASE_PYTHON) -c 'import os, sys, sysconfig as s, ensurepip; \
		sys.exit(not os.path.isfile(os.path.join(s.get_paths()["include"], "Python.h")))' 2>/dev/null \
		|| { echo "Python's venv module and headers are needed (Debian: python3-venv, python3-dev)"; exit 1; }
	@echo "[1/3] .venv with $(BASE_PYTHON)"
	@$(BASE_PYTHON) -m venv .venv
	@echo "[2/3] requirements.lock (about 2.5 GB with torch's CPU build)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps -e .
	@echo "[3/3] DeepSpeed's CPU operators"
	@cluster/build_ops.sh $(BIN)/python
	@touch $@

demo: $(READY) ## prepare, train, evaluate and ask the demo model: within eight minutes
	@cluster/local.sh run python -m ray_jobs.pipeline ray_jobs/configs/demo.yaml storage=$(STORAGE)

serve: $(READY) ## serve the model in STORAGE (default: the demo's) until Ctrl-C
	@cluster/local.sh run python -m ray_jobs.serve ray_jobs/configs/serve.yaml \
		storage=$(STORAGE) port=$(PORT)

ui: $(READY) ## open MLflow on the runs in STORAGE
	@test -f $(STORAGE)/mlflow.db || { echo "no runs in $(STORAGE); make demo writes some"; exit 1; }
	@echo "MLflow: http://127.0.0.1:$(UI_PORT)"
	@MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
		$(BIN)/mlflow ui --port $(UI_PORT) --workers 1 \
		--backend-store-uri sqlite:///$(STORAGE)/mlflow.db

test: $(READY) ## the tests that pass in ten to twelve minutes on two cores
	@$(BIN)/python -m pytest -q -m "not slow and not gpu" tests

test-slow: $(READY) ## the tests that take longer
	@$(BIN)/python -m pytest -q -m "slow and not gpu" tests

bench: $(READY) ## measure one of tests/benchmarks beside its peers: make bench NAME=dpo_vs_trl
	@test -n "$(NAME)" || { echo "NAME is one of:"; \
		grep -l '^    print_report(' tests/benchmarks/*.py | sed 's/.*\//  /; s/\.py//'; exit 1; }
	@$(BIN)/python -m tests.benchmarks.$(NAME)

check: $(READY) ## ruff, format and pyright
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright

docs: $(READY) ## write the parts of docs/ that follow from the code: settings, losses
	@$(BIN)/python -m metaalign.config.reference > docs/settings.md
	@$(BIN)/python -m metaalign.config.loss_table docs/losses.md

lock: $(READY) ## pin what pyproject.toml asks for; what is pinned stays where it may
	@$(BIN)/pip-compile --quiet --extra dev --extra bench --strip-extras --allow-unsafe --no-header \
		--no-annotate --no-emit-options --no-emit-index-url --no-emit-find-links \
		--no-emit-trusted-host --output-file requirements.lock pyproject.toml
	@sed -i 's/+cpu$$//' requirements.lock
