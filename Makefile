# Every target sets up what it needs in .venv by itself, from the exact versions in constraints.txt.
# TORCH picks another build or release than the pinned one, for example on a CUDA machine
# `make install TORCH=torch`; what comes with torch is then not pinned either.
PYTHON ?= python3
TORCH ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := -m pip install --quiet --disable-pip-version-check
# the release that is offered as a CPU build; 2.11 and newer are supported
TORCH_PIN := torch==2.13.0
NEWEST := out/newest/venv
LOWEST := out/lowest/venv
DEMO_ZOO := out/demo-zoo
PORT ?= 8000
GPU_OUT := out/gpu
SPEC ?=
MINUTES ?= 120
FAULTS ?= 500

.PHONY: install demo serve test check fuzz oracle wheel newest lowest constraints chaos soak gpu clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "blockllm needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@grep -vE '$(if $(TORCH),^(torch|triton|nvidia-|cuda-),^$$)' constraints.txt > $(VENV)/pins.txt
	$(BIN)/python $(PIP) --constraint $(VENV)/pins.txt setuptools "$(or $(TORCH),torch)"
	$(BIN)/python $(PIP) --constraint $(VENV)/pins.txt --no-build-isolation --editable ".[demo]"
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/python $(PIP) --constraint $(VENV)/pins.txt --no-build-isolation --editable ".[demo,dev]"
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

# The standing campaigns, far beyond what `make test` runs of each; hours of one core in all.
fuzz: $(VENV)/.dev
	$(BIN)/python $(PIP) --constraint $(VENV)/pins.txt --no-build-isolation --editable ".[demo,dev,fuzz]"
	$(BIN)/python -m tools.campaigns.traces
	$(BIN)/python -m tools.campaigns.files
	$(BIN)/python -m tools.campaigns.requests bytes
	$(BIN)/python -m tools.campaigns.requests sockets
	$(BIN)/python -m tools.campaigns.requests schema

# The oracle without kept answers: the reference is asked anew, and its answers are kept.
oracle: $(VENV)/.dev
	rm -rf tests/oracle/answers
	ORACLE_ANSWERS=renew ORACLE_REPORT=docs/oracle-table.md $(BIN)/python -m pytest \
		tests/oracle tests/demo/test_family.py

# The wheel in an empty environment, with everything that it asks for.
wheel: $(VENV)/.dev
	WHEEL_PINS=$(VENV)/pins.txt $(BIN)/python -m pytest tests/packaging

# The suite on the newest versions that the index allows, after what differs from the pinned ones.
# A failure here is news, not an error: the status is 0.
newest:
	$(PYTHON) -m venv --clear $(NEWEST)
	$(NEWEST)/bin/python $(PIP) --editable ".[demo,dev,hub]"
	$(NEWEST)/bin/python -m tools.versions constraints.txt
	-$(NEWEST)/bin/python -m pytest -n auto --maxprocesses 8 --dist loadfile

# The suite on the lowest versions that pyproject.toml admits.
lowest: $(VENV)/.dev
	$(BIN)/python $(PIP) uv
	$(PYTHON) -m venv --clear $(LOWEST)
	$(BIN)/uv pip compile --quiet --resolution lowest-direct --all-extras --python $(LOWEST)/bin/python \
		--output-file $(LOWEST)/lowest.txt pyproject.toml
	$(LOWEST)/bin/python $(PIP) --requirement $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python $(PIP) --no-deps --editable .
	$(LOWEST)/bin/python -m tools.versions constraints.txt
	$(LOWEST)/bin/python -m pytest -n auto --maxprocesses 8 --dist loadfile

# Renews constraints.txt: exact versions of everything, for every supported Python and platform.
constraints: $(VENV)/.dev
	$(BIN)/python $(PIP) uv
	echo "$(TORCH_PIN)" > $(VENV)/torch.txt
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --all-extras \
		--no-annotate --custom-compile-command "make constraints" \
		--constraint $(VENV)/torch.txt --output-file constraints.txt pyproject.toml

# Five hundred faults at random moments under load; about forty minutes.
chaos: $(VENV)/.dev
	$(BIN)/python -m tools.campaigns.faults --faults $(FAULTS) --out out/chaos

# A server by the clock: steady mixed load, a zoo that changes, agents that are killed.
soak: $(VENV)/.dev
	$(BIN)/python -m tools.soak --requests 100000000 --minutes-limit $(MINUTES) --rate 3 \
		--kill-minutes 15 --changes --memory 34MiB

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
