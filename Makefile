# make install      create .venv with the project and its dependencies
# make compare      install, then train the three networks and print their table
# make test         install, lint, then run the tests
# make test-programs  install, then run the programs and documents from end to end
# make test-faults  install, then run the long fault-injection tests and print figures
# make test-scale   install Ray too, then run the tests of jobs and sweeps on a cluster
# make test-peers   install PyTorch, Keras and TensorFlow, then run the tests that need them
# make lint         install, then run ruff and mypy
# make peers        install PyTorch and Keras in .venv-peers, then benchmark them
# make speedrun     install, then reproduce the record for 99 % of MNIST
# make accelerator  install JAX for ACCELERATOR (cuda or tpu), then test and measure on it
# Another Python: make test PYTHON=/path/to/python3.13 VENV=.venv-newest

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready-$(shell $(PYTHON) -c 'import platform as p; print(p.python_version())' 2>/dev/null)
PIP = -m pip install --quiet --disable-pip-version-check --constraint constraints
PYTEST = $(BIN)/python -m pytest

.PHONY: install compare test test-programs test-faults test-scale test-peers lint peers speedrun accelerator clean

install: $(READY)

$(READY): pyproject.toml constraints/tests.txt
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP)/tests.txt --editable '.[test]'
	touch $@

compare: install
	$(BIN)/python -m benchmarks.compare

test: install lint
	$(PYTEST) --numprocesses=auto --dist=worksteal

test-programs: install
	$(PYTEST) --numprocesses=auto --dist=worksteal -m 'programs and not faults' tests

test-faults: install
	$(PYTEST) -m faults -rP tests

test-scale: install
	$(BIN)/python $(PIP)/tests.txt --editable '.[test,sweep]'
	$(PYTEST) -m scale -rP tests

test-peers: .venv-peers/.ready
	.venv-peers/bin/python $(PIP)/tests.txt pytest pytest-timeout safetensors
	.venv-peers/bin/python -m pytest -k 'torch or worker or tensorflow' \
		tests/benchmarks/test_peers.py tests/export/test_formats.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

PEERS_OUT ?= results/peers
peers: .venv-peers/.ready
	.venv-peers/bin/python -m benchmarks.peers --out=$(PEERS_OUT)

.venv-peers/.ready: pyproject.toml constraints/peers.txt
	rm -rf .venv-peers
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python $(PIP)/peers.txt $(PEERS_PIP) --editable '.[peers]'
	touch $@

speedrun: install
	$(BIN)/python -m benchmarks.speedrun --target=0.99

ACCELERATOR ?= cuda
THROUGHPUT = $(BIN)/python -m benchmarks.throughput --starts=0 --out=benchmarks/results

accelerator: install
	$(BIN)/python $(PIP)/tests.txt --editable '.[test,$(ACCELERATOR)]'
	XLA_FLAGS= $(PYTEST) -m accelerator
	$(THROUGHPUT) --batch_sizes=128,1024,8192 --precisions=float32,bfloat16
	$(THROUGHPUT) --batch_sizes=128 --seeds=8,64
	$(BIN)/python -m benchmarks.readme

clean:
	rm -rf $(VENV) .venv-* build *.egg-info .pytest_cache .ruff_cache .mypy_cache
