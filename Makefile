# make repro | test | ui | paper | report SCALE=paper. Each makes its own environment; see README.md.
PYTHON ?= python3
SCALE ?= quick
VENV := .venv
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export PYTHONUNBUFFERED := 1

.PHONY: setup grid repro paper report track weights verify-results ui lint test

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "error: Python 3.11 to 3.13 is needed; $(PYTHON) is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12")'
	@echo "making the environment in $(VENV) (once, a few minutes)"
	@$(PYTHON) -m venv $(VENV)
	@python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@# An unpacked source archive is no git repository, which DVC must be told.
	@[ -e .git ] || dvc config --local core.no_scm true
	@touch $@

grid: $(READY)
	@python -m pipeline.grid

repro: grid
	dvc repro check report@quick track@quick
	@python -m stages.weights quick
	@echo "read reports/quick/index.html; compare the runs with: make ui"

# RAY=1: on all GPUs of this machine at once. RAY=ADDRESS: on the Ray cluster there (docs/scale-out.md).
paper: grid
ifdef RAY
	@python -c 'import ray' 2>/dev/null || python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[ray]'
	dvc repro binarize
	python -m pipeline.launch run --ray $(filter-out 1,$(RAY))
endif
	dvc repro check report@paper track@paper
	@python -m stages.weights paper

# From the summaries in git, without data, training or cache.
report: grid
	dvc repro --single-item report@$(SCALE)
	@echo "read reports/$(SCALE)/index.html"

track: grid
	dvc repro --single-item track@$(SCALE)

# Weights of selected finished runs into reports/<scale>/weights/, which is in git.
weights: $(READY)
	@python -m stages.weights $(SCALE)

# Recompute the NLL of a committed cell from its shipped weights. CELL: one that `make verify-results` lists.
IMAGES ?= 100
verify-results: $(READY)
	@python -m stages.verify $(CELL) --images $(IMAGES)

ui: $(READY)
	@python -m stages.ui

lint: $(READY)
	ruff check
	ruff format --check
	mypy

test: lint
	pytest -n 2 --dist loadfile
