# make install      create .venv with the project and its dependencies
# make compare      install, then train the three networks and print their table
# make test         install, lint, then run the tests
# make test-fast    install, then run the fast tests, in under a minute
# make test-faults  install, then run the long fault-injection tests and print figures
# make test-scale   install Ray too, then run the tests of jobs and sweeps on a cluster
# make test-matrix  run the tests on the oldest and newest supported Python and jax
# make lint         install, then run ruff and mypy
# make peers        install PyTorch and Keras in .venv-peers, then benchmark them
# make speedrun     install, then reproduce the record for 99 % of MNIST
# make accelerator  install JAX for ACCELERATOR (cuda or tpu), then test and measure on it
# make check-tpu    install libtpu in .libtpu, then compile the epochs for a TPU
# Another Python: make test PYTHON=/path/to/python3.12

PYTHON ?= python3
VENV ?= .venv

# One constraints file for each Python with a different newest jax.
CONSTRAINTS = constraints/$(shell $(PYTHON) -c \
	'import sys; print("python3.11" if sys.version_info < (3, 12) else "python3.12")').txt
BIN = $(VENV)/bin
READY = $(VENV)/.ready-$(shell $(PYTHON) -c \
	'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null)

.PHONY: install compare test test-fast test-faults test-scale test-matrix lint peers speedrun \
	accelerator check-tpu clean

install: $(READY)

$(READY): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"error: mnist_jax needs Python 3.11 or newer, this is %d.%d; use make \
	PYTHON=/path/to/python3.12" % sys.version_info[:2])'
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(CONSTRAINTS) --editable '.[test]'
	touch $@

compare: install
	$(BIN)/python -m benchmarks.compare

test: install lint
	$(BIN)/python -m pytest --numprocesses=auto --dist=worksteal

test-fast: install
	$(BIN)/python -m pytest --numprocesses=auto --dist=worksteal -m 'not slow and not faults and not scale'

test-faults: install
	$(BIN)/python -m pytest -m faults -rP tests

test-scale: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(CONSTRAINTS) --editable '.[test,sweep]'
	$(BIN)/python -m pytest -m scale -rP tests

# The constraints for Python 3.11 pin the oldest jax, flax and optax that pyproject.toml
# allows; the constraints for newer Pythons pin the newest.
PYTHON_OLDEST ?= python3.11
PYTHON_NEWEST ?= python3.13

test-matrix:
	$(MAKE) test PYTHON=$(PYTHON_OLDEST) VENV=.venv-oldest
	$(MAKE) test PYTHON=$(PYTHON_NEWEST) VENV=.venv-newest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# TensorFlow needs other versions than those pinned in the tests' constraints.
PEERS_CONSTRAINTS = $(wildcard constraints/peers-$(notdir $(CONSTRAINTS)))

PEERS_OUT ?= results/peers

peers: .venv-peers/.ready
	.venv-peers/bin/python -m benchmarks.peers --out=$(PEERS_OUT)

.venv-peers/.ready: pyproject.toml $(PEERS_CONSTRAINTS)
	rm -rf .venv-peers
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check \
		$(addprefix --constraint ,$(PEERS_CONSTRAINTS)) $(PEERS_PIP) --editable . \
		torch==2.13.0 keras==3.15.1 tensorflow-cpu==2.21.0
	touch $@

speedrun: install
	$(BIN)/python -m benchmarks.speedrun --target=0.99

ACCELERATOR ?= cuda

accelerator: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(CONSTRAINTS) --editable '.[test,$(ACCELERATOR)]'
	XLA_FLAGS= $(BIN)/python -m pytest -m accelerator
	$(BIN)/python -m benchmarks.accelerators --out=benchmarks/results
	$(BIN)/python -m benchmarks.readme

# The version that this jax asks for, without its other requirements.
check-tpu: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --no-deps \
		--target .libtpu "$$($(BIN)/python -c 'import importlib.metadata as m; \
		print(next(r.split(";")[0] for r in m.requires("jax") if r.startswith("libtpu")))')"
	PYTHONPATH=.libtpu $(BIN)/python -m benchmarks.check_tpu

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest .venv-peers .libtpu build *.egg-info .pytest_cache .ruff_cache .mypy_cache
