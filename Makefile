# `make parity` and `make test` each do their whole set-up on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
# Halves of the tests, of which who is done takes from the other: what a file's tests share is seldom made twice.
PYTEST := $(BIN)/pytest -n logical --maxprocesses 8 --dist worksteal
# Tests start many processes: none should compile again what an earlier one did.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help parity test test-slow lint format docs docs-site gallery faults goldens-verify dist clean

help:
	@echo "make parity   six check keys of fvcore against the recorded reference, on the shipped model"
	@echo "make test     the project's own tests that take no long time"
	@echo "make test-slow  the tests that take long, and those of numbers once more as on another processor"
	@echo "make lint     ruff and mypy --strict"
	@echo "make docs     regenerate what is generated under docs/"
	@echo "make docs-site  the documentation as a site, in build/docs"
	@echo "make gallery  every page of the shipped models as a picture under docs/gallery"
	@echo "make faults   plant every known fault and write what catches it to docs/faults.md and docs/*-faults.md"
	@echo "make dist     wheel and sdist, as an index takes them"
	@echo "make goldens-verify FV_SRC=path   record the goldens again from a checkout and compare bytes"

parity: $(VENV)/.run-time
	$(BIN)/pytest -m parity datasets/fixed_trials/fixed_trials_tiny_antonym_t10_s10_seed0_tiny_llama.json

test: $(VENV)/.development
	$(PYTEST) -m "not slow"

# What claims something about numbers; other tests are about files, processes, pages and words, or about experiments, which
# ask these stations and engines.
OF_NUMBERS := $(filter-out %/test_cli.py %/test_audit.py,$(wildcard tests/fvcore/test_*.py tests/fvcore/evaluation/test_*.py)) \
  tests/phase2 \
  $(patsubst %,tests/pytest_fvparity/test_%.py,family_goldens half_precision idle_injection near_ties partial \
  planted_faults repeat selftest_faults sensitivity shipped signatures)

# A stand-in for another processor: torch and oneDNN choose other kernels, and no test may know the difference.
test-slow: $(VENV)/.development
	$(PYTEST) -m slow
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 $(PYTEST) -m "not slow" $(OF_NUMBERS)

lint: $(VENV)/.development
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.development
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.run-time
	$(BIN)/python -m pytest_fvparity.report.schema docs/report.schema.json
	$(BIN)/python -m pytest_fvparity.plans.page docs/milestones.md

docs-site: $(VENV)/.site
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --fresh-env docs build/docs
	@echo "build/docs/index.html"

# A headless chromium takes the pictures, where there is one.
gallery: $(VENV)/.run-time
	$(BIN)/python benchmarks/gallery.py

faults: $(VENV)/.run-time
	$(BIN)/fvparity selftest --markdown docs/faults.md
	$(BIN)/python -m pytest_fvparity.selftest.sensitivity docs/sensitivity.md
	$(BIN)/fvcore select-kv-faults --markdown docs/select-kv-faults.md
	$(BIN)/fvcore pathways faults --markdown docs/pathways-faults.md

goldens-verify: $(VENV)/.development
	@test -n "$(FV_SRC)" || { echo "FV_SRC: path of a checkout of https://github.com/ericwtodd/function_vectors" >&2; exit 2; }
	$(BIN)/python benchmarks/goldens_verify.py "$(FV_SRC)"

# The version stands in one line; a release takes it from its tag, and has a place in the changelog.
dist: $(VENV)/.release
	$(if $(VERSION),$(BIN)/hatchling version "$(VERSION)")
	@grep -q "^## $$($(BIN)/hatchling version)\b" CHANGELOG.md || { echo "CHANGELOG.md: no heading for this version" >&2; exit 2; }
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache

$(VENV)/.run-time: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	@touch $@

$(VENV)/.development: $(VENV)/.run-time
	$(PIP) --editable '.[dev]'
	@touch $@

$(VENV)/.site: $(VENV)/.run-time
	$(PIP) --editable '.[site]'
	@touch $@

$(VENV)/.release: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) build hatchling twine
	@touch $@
