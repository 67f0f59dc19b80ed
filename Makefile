# make demo              songs -> shards -> VQ-VAE -> codes -> priors -> samples -> a page, in about ten minutes on two cores
# make demo SONGS=folder the same with your own audio
# make test              what must pass before a commit;  make test-all  the slow ones too
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
TORCH  ?= 2.13.0

ifdef SONGS
DEMO := demo_$(notdir $(abspath $(SONGS))) --songs $(SONGS)
else
DEMO := demo
endif

.PHONY: demo install monitoring test test-all check soak clean

demo: install
	$(BIN)/megajukebox demo --out $(DEMO)

install: $(VENV)/installed

# torch first: left to itself, pip would fetch gigabytes of CUDA onto a machine without a GPU.
$(VENV)/installed: pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	BIN=$(BIN) TORCH=$(TORCH) sh .ci/install_torch
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

check: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

test: check
	$(BIN)/python -m pytest -q -n 2 --dist loadgroup -m "not slow"

test-all: check
	$(BIN)/python -m pytest -q -n 2 --dist loadgroup

# An hour of faults against a run on an emulated cluster; takes root, SLURM and munge.
soak: $(VENV)/installed-test
	$(BIN)/python benchmarks/soak.py --minutes 60 --out benchmarks/results/soak.json

# Rules, dashboard, runbook index and lists of the docs, from the tables of metrics and alerts.
monitoring: $(VENV)/installed
	$(BIN)/python -m megajukebox.monitoring.generate

clean:
	rm -rf demo demo_* build
