# `make help` lists the targets. Everything is installed into .venv, nothing outside the clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
PYTEST := pytest -n 2 --dist loadfile --no-loadscope-reorder   # the end-to-end tests come first: see tests/conftest.py

.DEFAULT_GOAL := help
.PHONY: help repro recipe test check lint experiments ui serve promote clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

repro: $(VENV)/.installed  ## install what is needed, then prepare, train, evaluate and plot
	dvc repro
	@printf '\nDone. Report: metrics/report.html   Numbers: metrics/evaluate.json   Compare runs: make ui\n'

recipe: $(VENV)/.installed  ## run the pipeline with a named set of parameters: make recipe NAME=published DATA=faces.zip SET="seed=2"
	@python -m detector recipe $(NAME) $(if $(DATA),--data $(DATA)) $(if $(SET),--set $(SET))

test: $(VENV)/.installed-dev  ## install what is needed, then run all tests
	$(PYTEST)

check: lint  ## run what belongs before a commit: style, types and the fast tests
	$(PYTEST) -m 'not slow and not e2e'

lint: $(VENV)/.installed-dev  ## check style, formatting and types of the code
	ruff check . && ruff format --check . && mypy

experiments: $(VENV)/.installed  ## list the DVC experiments with what changed and the headline metrics
	dvc exp show --only-changed --drop '.*(intervals|uncalibrated|selective|per_class|confusion|stress|reencoded|within_sets|classes|_groups|duplicates|shortcuts|excluded|sizes|counts|groups|digest|[.]n|best|weights_note|[.]py|[.]html|detector/|metrics/|models/|data/).*'

ui: $(VENV)/.installed  ## open the MLflow UI on http://127.0.0.1:5000 (another port: make ui PORT=5001)
	python -m detector ui $(or $(PORT),5000)

serve: $(VENV)/.installed  ## serve the detector as a web page and an HTTP API on http://127.0.0.1:8000 (another port: PORT=8001)
	python -m detector serve --port $(or $(PORT),8000) $(if $(MODEL),--model $(MODEL))

promote: $(VENV)/.installed  ## make the last model the champion if it beats it (another: make promote RUN=tidy-fern)
	python -m detector registry promote $(RUN)

clean:  ## delete the files of the pipeline, but not the MLflow runs, DVC's cache and downloaded weights
	rm -rf data/prepared data/extra models/model.keras models/model.openvino models/calibration.json models/run_id models/checkpoints \
		metrics/plots metrics/report.html metrics/run_id data/*.part metrics/*.part

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11; run: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt | $(VENV)/bin/python
	@echo "Installing requirements into $(VENV), a few minutes the first time ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@
