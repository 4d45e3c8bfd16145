# make demo     trains on handwritten digits, samples, and says where the picture is
# make test     the default test suite
# make check    ruff and mypy
# make gallery  docs/gallery.md and its pictures anew
# An environment that is active (venv, or conda other than base) is used as it is; otherwise .venv is made here.
# TORCH_INDEX=URL takes torch from there (a CPU-only or another CUDA build): see the README.

ifneq ($(VIRTUAL_ENV)$(filter-out base,$(CONDA_DEFAULT_ENV)),)
BIN :=
ENVIRONMENT := active-environment
TOOLS := active-environment
else
BIN := .venv/bin/
ENVIRONMENT := .venv/installed
TOOLS := .venv/installed-tools
PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11,\
	$(shell $(p) -c "import sys; sys.version_info >= (3, 11) and print('$(p)')" 2>/dev/null)))
endif

.PHONY: demo test check gallery active-environment

demo: $(ENVIRONMENT)
	$(BIN)python main.py --mode train --sde vp
	$(BIN)python main.py --mode sample --sampler pc --workdir runs/vp

gallery: $(ENVIRONMENT)
	$(BIN)python scripts/gallery.py

test: $(TOOLS)
	OMP_NUM_THREADS=1 $(BIN)python -m pytest -q -n 2

check: $(TOOLS)
	$(BIN)python -m ruff check .
	$(BIN)python -m ruff format --check .
	$(BIN)python -m mypy

.venv/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or later found; give one with PYTHON=/path/to/python"; exit 2; }
	$(PYTHON) -m venv .venv
ifneq ($(TORCH_INDEX),)
	.venv/bin/python -m pip install -q -c constraints.txt --index-url $(TORCH_INDEX) torch
endif
	.venv/bin/python -m pip install -q -c constraints.txt -e .
	@touch $@

.venv/installed-tools: .venv/installed
	.venv/bin/python -m pip install -q -c constraints.txt -e .[dev]
	@touch $@

active-environment:
	@python -c "import torch, ml_collections, absl, safetensors, sklearn, torchdiffeq, tqdm" || \
		{ echo "error: the active environment lacks a dependency; pip install -c constraints.txt -e '.[dev]'"; exit 2; }
