# One command for each daily job; PYTHON chooses the interpreter.
PYTHON ?= python

.PHONY: help format lint types test test-fast test-tpu test-gpu-plan nano benchmark ci

help:  ## this list
	@sed -n 's/^\([a-z-]*\):  ## /\1: /p' Makefile

format:  ## format the code and fix what lint can
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

lint:  ## lint, and check the format
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:  ## check the types
	$(PYTHON) -m ty check --python $$($(PYTHON) -c 'import sys; print(sys.prefix)') gpt_jax configs data main.py

test:  ## all tests
	$(PYTHON) -m pytest

test-fast:  ## all but the slow tests
	$(PYTHON) -m pytest -m "not slow"

test-tpu:  ## compile every config for a TPU slice; needs requirements-tpu.txt, but no TPU
	$(PYTHON) -m pytest -o addopts="-q" tests/tpu

test-gpu-plan:  ## compile configs for NVIDIA GPUs; needs requirements-gpu-plan.txt, but no GPU
	$(PYTHON) -m pytest -o addopts="-q" tests/gpu

nano:  ## the main job
	$(PYTHON) main.py --config nano

benchmark:  ## beside PyTorch, then the tables of README and docs
	$(PYTHON) benchmarks/speed.py
	$(PYTHON) benchmarks/tables.py

ci:  ## what a machine runs on every change, in a fresh environment
	bash .ci/run
