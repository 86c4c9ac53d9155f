# Every target sets up what it needs in .venv by itself.
# TORCH picks the build: on a CPU machine the pinned release resolves to the CPU wheel where one is
# offered; on a CUDA machine use e.g. `make install TORCH=torch`.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
DEMO_ZOO := out/demo-zoo
PORT ?= 8000

.PHONY: install demo serve test check oracle clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "blockllm needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[demo]"
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[demo,dev]" "$(TORCH)"
	@touch $@

demo: install
	$(BIN)/python -m tools.demo --zoo $(DEMO_ZOO)

serve: install
	$(BIN)/python -m tools.demo --zoo $(DEMO_ZOO) --port $(PORT) --stay

test: $(VENV)/.dev
	$(BIN)/python -m pytest

check: $(VENV)/.dev
	$(BIN)/ruff check blockllm tests tools
	$(BIN)/ruff format --check blockllm tests tools
	$(BIN)/mypy

oracle: $(VENV)/.dev
	ORACLE_REPORT=docs/oracle-table.md $(BIN)/python -m pytest tests/oracle

clean:
	rm -rf $(VENV) out build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
