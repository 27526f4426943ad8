# make compare   set up, then train the three networks and print their table
# make test      set up, then run the tests
# make test-fast  set up, then run the tests that compile little, in under a minute
# make test-faults  set up, then run the tests that take minutes and print figures
# make test-matrix  the tests with the oldest and the newest Python and jax supported
# make install   set up only
# make peers     set up PyTorch and Keras beside it in .venv-peers, then race them
# Another Python: make test PYTHON=/path/to/python3.12

PYTHON ?= python3
VENV ?= .venv

# A constraints file per Python where the newest jax differs.
CONSTRAINTS = constraints/$(shell $(PYTHON) -c \
	'import sys; print("python3.11" if sys.version_info < (3, 12) else "python3.12")').txt
BIN = $(VENV)/bin
READY = $(VENV)/.ready-$(shell $(PYTHON) -c \
	'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null)

.PHONY: install compare test test-fast test-faults test-matrix lint peers clean

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
	$(BIN)/python -m pytest --numprocesses=auto --dist=worksteal -m 'not slow and not faults'

test-faults: install
	$(BIN)/python -m pytest -m faults -rP tests

# The constraints of Python 3.11 pin the oldest jax, flax and optax that pyproject.toml
# allows, those of the newer Pythons the newest.
PYTHON_OLDEST ?= python3.11
PYTHON_NEWEST ?= python3.13

test-matrix:
	$(MAKE) test PYTHON=$(PYTHON_OLDEST) VENV=.venv-oldest
	$(MAKE) test PYTHON=$(PYTHON_NEWEST) VENV=.venv-newest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Keras's newest TensorFlow wants other versions than the tests' constraints pin.
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

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest .venv-peers build *.egg-info .pytest_cache .ruff_cache .mypy_cache
