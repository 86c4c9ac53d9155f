# Every target sets up what it needs in .venv by itself.
# TORCH picks the build: on a CPU machine the pinned release resolves to the CPU wheel where one is
# offered; on a CUDA machine use e.g. `make install TORCH=torch`.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
DEMO_ZOO := out/demo-zoo
PORT ?= 8000
GPU_OUT := out/gpu
SPEC ?=

.PHONY: install demo serve test check oracle gpu clean

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

# One process per core, at most eight; a file's tests stay together, since they share fixtures.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

check: $(VENV)/.dev
	$(BIN)/ruff check blockllm tests tools
	$(BIN)/ruff format --check blockllm tests tools
	$(BIN)/mypy

oracle: $(VENV)/.dev
	ORACLE_REPORT=docs/oracle-table.md $(BIN)/python -m pytest tests/oracle

# On a machine with a CUDA device: the GPU tests, the kernels' times, and with SPEC=FILE a comparison.
gpu: $(VENV)/.dev
	@$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || \
		{ echo "torch finds no CUDA device; reinstall with \`make clean gpu TORCH=torch\`"; exit 1; }
	$(BIN)/python -c 'import torch, triton; print(torch.cuda.get_device_name(), torch.__version__, triton.__version__)'
	$(BIN)/python -m pytest tests/engine/gpu
	$(BIN)/python -m pytest -m gpu tests --ignore tests/engine/gpu
	$(BIN)/blockllm bench kernel --device cuda --out $(GPU_OUT)
	$(if $(SPEC),$(BIN)/blockllm bench compare $(SPEC) --out $(GPU_OUT)/compare)

clean:
	rm -rf $(VENV) out build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
