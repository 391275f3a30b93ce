# make run | test | lint | smoke | bench | doctor | clean        (make run PROFILE=smoke VERTICAL=... RUN=... SEED=...)
# PIP_EXTRA is handed to pip. CPU-only Linux, where PyPI's torch would be the large CUDA build:
#   make run PIP_EXTRA="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON   ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
PROFILE  ?= demo
VERTICAL ?= apparel_home
RUN      ?= $(PROFILE)
SEED     ?= 17
PIP_EXTRA ?=

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: run test lint smoke bench doctor clean

run: $(STAMP)
	$(BIN)/lore run --profile $(PROFILE) --vertical $(VERTICAL) --run $(RUN) --seed $(SEED)

test: lint
	$(BIN)/python -m pytest -m "not gpu and not vllm"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

smoke: $(STAMP)
	$(BIN)/lore run --profile smoke --vertical $(VERTICAL) --run smoke --seed $(SEED)

bench: $(STAMP)
	set -e; for file in benchmarks/bench_*.py; do echo "$$file"; $(BIN)/python $$file; done

doctor: $(STAMP)
	$(BIN)/lore doctor --profile $(PROFILE)

# Made once, and again whenever pyproject.toml changes.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_EXTRA) -e ".[dev]"
	$(BIN)/lore kernel
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find lore_lib tests -name __pycache__ -type d -prune -exec rm -rf {} +
