# `make` alone prints the commands (the lines with two #). Each makes its own environment; see README.md.
PYTHON ?= python3
SCALE ?= quick
VENV := .venv
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export PYTHONUNBUFFERED := 1

.DEFAULT_GOAL := help
.PHONY: help setup grid repro overnight paper report track metrics weights verify-results ui lint test

help:
	@echo "What makes a good ELBO? Commands (docs: README.md):"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\) | \(.*\)/  make \1|\2|\3/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-22s %-72s %s\n", $$1, $$2, $$3}'
	@echo "Times are of two CPU cores; with ~ they are estimates, the others were measured."

# Made anew where its programs are gone, whatever the marker says.
ifneq ($(shell $(VENV)/bin/python -c 'print(1)' 2>/dev/null),1)
.PHONY: $(READY)
endif

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "error: Python 3.11 to 3.13 is needed; $(PYTHON) is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12")'
	@echo "making the environment in $(VENV) (once, a few minutes)"
	@$(PYTHON) -m venv $(VENV)
	@python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@# An unpacked source archive is no git repository, which DVC must be told.
	@[ -e .git ] || dvc config --local core.no_scm true
	@touch $@

ANEW = echo 'evaluating anew what reports/quick/results holds; should you stop before the end, another `make repro`' \
  'goes on from there, and `git checkout reports/quick/results` brings the committed results back'

# A fresh clone has the results of the last commit; it evaluates what it trains all the same.
repro: grid ## the quick scale end to end: data, training, evaluation, report, MLflow | ~ 10 minutes on 2 cores
	@[ -d "$${ELBO_STORE:-.store}" ] || { rm -f reports/quick/results/*/metrics.json; $(ANEW); }
	dvc repro check report@quick track@quick
	@python -m stages.weights quick
	@python -m stages.docs
	@python -m stages.news quick

ui: $(READY) ## MLflow on the runs; prints the address of its start page | until Ctrl-C
	@python -m stages.ui

# RAY=1: on all cores of this machine, or its GPUs. RAY=ADDRESS: on the Ray cluster there (docs/scale-out.md).
RAY_READY = python -c 'import ray' 2>/dev/null || \
  python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[ray]'

overnight: grid ## every cell of the papers at 40 of 3280 epochs, claims decided there | ~ a night on 2 cores
	dvc repro binarize
ifdef RAY
	@$(RAY_READY)
	python -m pipeline.launch run --scale overnight --ray $(filter-out 1,$(RAY))
else
	python -m pipeline.launch run --scale overnight
endif
	dvc repro check report@overnight track@overnight
	@python -m stages.weights overnight
	@python -m stages.docs
	@python -m stages.news overnight

paper: grid ## the papers' schedule; goes on where it stopped (docs/gpu.md) | ~ months of 2 cores; for a GPU
ifdef RAY
	@$(RAY_READY)
	dvc repro binarize
	python -m pipeline.launch run --ray $(filter-out 1,$(RAY))
endif
	dvc repro check report@paper track@paper
	@python -m stages.weights paper
	@python -m stages.docs
	@python -m stages.news paper

# From the summaries in git, without data, training or cache.
report: grid ## rebuild the report of SCALE=quick from the results in git: no training | ~ a minute
	dvc repro --single-item report@$(SCALE)
	@python -m stages.docs
	@echo "read reports/$(SCALE)/index.html"

track: grid ## put the results of SCALE=quick into MLflow | ~ a minute
	dvc repro --single-item track@$(SCALE)

# From there, the paths that DVC prints are short and those of one scale.
metrics: $(READY) ## the numbers of SCALE=quick, a row for each run | seconds
	@cd reports/$(SCALE)/metrics && dvc metrics show .

# Weights of selected finished runs into reports/<scale>/weights/, which is in git.
weights: $(READY) ## ship weights of finished runs of SCALE=quick with the reports | seconds
	@python -m stages.weights $(SCALE)

# Recompute the NLL of a committed cell from its shipped weights. CELL: one that `make verify-results` lists.
IMAGES ?= 100
verify-results: $(READY) ## recompute the NLL of a committed CELL from its shipped weights | ~ a minute
	@python -m stages.verify $(CELL) --images $(IMAGES)

test: lint ## lint, then all tests | 17 minutes on 2 cores
	pytest -n 2 --dist loadfile

lint: $(READY) ## ruff and mypy | ~ a minute
	ruff check
	ruff format --check
	mypy

grid: $(READY) ## write cohorts/ from params.yaml, as the others do first | seconds
	@python -m pipeline.experiments
	@python -m stages.unlock

setup: $(READY) ## the environment in .venv, which every other command makes too | 2 minutes, 2 GB
