# make demo              songs -> shards -> VQ-VAE -> codes -> priors -> samples -> a page, in about 16 minutes on two cores
# make demo SONGS=folder the same with your own audio
# make install           .venv; TORCH_BACKEND=cu126 on a login node of V100s, WHEELHOUSE=folder without a network
# make wheelhouse        that folder, made where there is a network
# make gpu-day-wheels    what benchmarks/gpu_day.py needs beside torch, for a GPU machine without a network
# make triton            Triton in .triton, for the tests that compile the kernels of decoding (a build for CUDA has it)
# make test              what must pass before a commit;  make test-all  the slow ones too
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
TORCH  ?= 2.13.0
# The one that torch's build for CUDA takes.
TRITON ?= 3.7.1
# The build of torch (cpu, cu126, cu130 ...) where this machine is not the one that will run it; else its GPU decides.
TORCH_BACKEND ?=
# A folder of wheels to install from, without any network.
WHEELHOUSE ?=
# Of `make wheelhouse`: for another machine than this one (3.12, manylinux_2_28_x86_64), without what that has already.
PYTHON_VERSION ?=
PLATFORM ?=
WITHOUT ?=
comma := ,
OFFLINE := $(if $(WHEELHOUSE),--no-index --find-links $(abspath $(WHEELHOUSE)))
PIP = $(BIN)/python -m pip install --quiet $(OFFLINE)

ifdef SONGS
DEMO := demo_$(notdir $(abspath $(SONGS))) --songs $(SONGS)
else
DEMO := demo
endif

.PHONY: demo install wheelhouse gpu-day-wheels triton monitoring test test-all check soak clean

demo: install
	$(BIN)/megajukebox demo --out $(DEMO)

install: $(VENV)/installed

# torch first: left to itself, pip would fetch gigabytes of CUDA onto a machine without a GPU.
$(VENV)/installed: pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(if $(WHEELHOUSE),,$(PIP) --upgrade pip)
	BIN=$(BIN) TORCH=$(TORCH) TORCH_BACKEND=$(TORCH_BACKEND) WHEELHOUSE=$(if $(WHEELHOUSE),$(abspath $(WHEELHOUSE))) sh .ci/install_torch
	DS_BUILD_OPS=0 $(PIP) --editable .
	touch $@

wheelhouse:
	.ci/wheelhouse $(or $(WHEELHOUSE),wheels) --torch $(TORCH) $(if $(TORCH_BACKEND),--torch-backend $(TORCH_BACKEND)) \
		$(if $(PYTHON_VERSION),--python $(PYTHON_VERSION)) $(if $(PLATFORM),--platform $(PLATFORM)) $(if $(WITHOUT),--without $(WITHOUT))

# Whatever that machine lacks comes from here; what it has already may be left out: WITHOUT=numpy,matplotlib
BUILD_TOOLS := pip,setuptools,wheel
gpu-day-wheels:
	.ci/wheelhouse $(or $(WHEELHOUSE),wheels_gpu_day) --torch $(TORCH) --torch-backend none --extras gpu-day \
		--python $(or $(PYTHON_VERSION),3.12) --platform $(or $(PLATFORM),manylinux_2_28_x86_64) \
		--without $(BUILD_TOOLS)$(if $(WITHOUT),$(comma)$(WITHOUT))

$(VENV)/installed-test: $(VENV)/installed
	$(PIP) --editable ".[test]"
	touch $@

# Into a folder of its own: beside the build for CPUs it is for a few tests alone.
triton: .triton/$(TRITON)
.triton/$(TRITON): | $(VENV)/installed
	rm -rf .triton
	$(PIP) --no-deps --target .triton triton==$(TRITON)
	touch $@

check: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

test: check
	$(BIN)/python -m pytest -q -n 2 --dist loadgroup -m "not slow"

test-all: check
	$(BIN)/python -m pytest -q -n 2 --dist loadgroup --cold-starts

# An hour of faults against a run on an emulated cluster; takes root, SLURM and munge.
soak: $(VENV)/installed-test
	$(BIN)/python benchmarks/soak.py --minutes 60 --out benchmarks/results/soak.json

# Rules, dashboard, runbook index and lists of the docs, from the tables of metrics and alerts.
monitoring: $(VENV)/installed
	$(BIN)/python -m megajukebox.monitoring.generate

clean:
	rm -rf demo demo_* build
