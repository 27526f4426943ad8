"""Programs kept as lowered are the programs, and never those of something else."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.processes import run_at_once

from mnist_jax.config import default_config
from mnist_jax.training import lowering
from mnist_jax.training.epochs import (
    make_mesh,
    shard_indices,
    spread_seeds,
    step_bounds,
)
from mnist_jax.training.experiment import prepare, seed_keys

SMALL = partial(
    default_config, dataset="digits", batch_size=64, train_size=640, validation="none"
)
CONFIGS = {
    "mlp": SMALL("mlp", hidden=(8,), dropout=(0.5,), pixels="standardized"),
    "frozen": SMALL("mlp", hidden=(8, 8), freeze=("Dense_0",), optimizer="sgd"),
    "lstm": SMALL("lstm", lstm_units=(8,), kernels="fast", optimizer="adamw"),
    "cnn": SMALL("cnn", conv=("8:pool2", "32"), hidden=(8,), kernels="fast"),
}


@pytest.fixture
def folder(monkeypatch, tmp_path) -> Path:
    """Where programs are kept, as if JAX's own cache were in use."""
    monkeypatch.setenv("MNIST_JAX_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(lowering, "uses_compile_cache", lambda: True)
    return tmp_path / "lowered"


def no_export(*_: Any) -> bytes:
    raise AssertionError("the program was lowered again")


def run(config: Any, digits: Any) -> Any:
    """Trains two seeds for a few steps on four devices, and evaluates."""
    experiment = prepare(config, digits, 2, mesh=make_mesh(2, 2))
    mesh, keys = experiment.mesh, seed_keys([3, 4])
    first, keys = spread_seeds((experiment.init(keys), keys), mesh)
    start = jax.device_get(first)
    indices = shard_indices(np.arange(1280).reshape(2, 10, 64) % 640, mesh)
    states = first
    for bounds in (step_bounds(0, 2, mesh), step_bounds(2, 3, mesh)):
        states, metrics = experiment.train_epoch(
            states, experiment.train, indices, keys, bounds
        )
    donated = [leaf.is_deleted() for leaf in jax.tree.leaves(first)]
    totals = experiment.evaluate(states.params, experiment.held_out, experiment.test)
    return jax.device_get((start, states, metrics, totals)), donated


@pytest.mark.parametrize("name", CONFIGS)
def test_kept_programs_do_what_the_programs_do(name, digits, folder, monkeypatch):
    config = CONFIGS[name]
    with monkeypatch.context() as patch:
        patch.setattr(lowering, "uses_compile_cache", lambda: False)
        expected = run(config, digits)
    assert not folder.exists()
    jax.tree.map(np.testing.assert_array_equal, run(config, digits), expected)
    kept = sorted(path.name.split("-")[0] for path in folder.iterdir())
    assert kept == ["evaluate", "init", "train_epoch"]
    monkeypatch.setattr(lowering, "_export", no_export)
    jax.tree.map(np.testing.assert_array_equal, run(config, digits), expected)


def test_another_config_has_programs_of_its_own_and_another_seed_has_not(
    digits, folder, monkeypatch
):
    def names(**changes: Any) -> set[str]:
        before = set(folder.iterdir()) if folder.exists() else set()
        config = dataclasses.replace(CONFIGS["mlp"], **changes)
        prepare(config, digits, mesh=make_mesh(1))
        return {path.name for path in set(folder.iterdir()) - before}

    assert len(names()) == 3
    assert len(names(learning_rate=0.5)) == 3
    monkeypatch.setattr(lowering, "_export", no_export)
    assert not names(seed=1)
    # The same shapes, but other pixels to standardize by.
    train = digits.train._replace(images=digits.train.images // 2)
    with pytest.raises(AssertionError, match="lowered again"):
        prepare(
            CONFIGS["mlp"], dataclasses.replace(digits, train=train), mesh=make_mesh(1)
        )


def twice(x: jax.Array, name: str = "twice", identity: Any = "") -> jax.Array:
    program = jax.jit(lambda x: 2 * x)
    lowered = lowering.lower_program(name, program, [x], 0, identity)
    return lowered.compile()(x)


X = jnp.arange(4.0)


def test_whatever_tells_programs_apart_gives_them_files_of_their_own(
    folder, monkeypatch
):
    files = 0
    sharded = jax.device_put(X, jax.NamedSharding(make_mesh(2), jax.P("batch")))
    for change in (
        partial(twice, X),
        partial(twice, X, name="other"),
        partial(twice, X, identity=1),
        partial(twice, X[:3]),
        partial(twice, X.astype(int)),
        partial(twice, sharded),
    ):
        change()
        change()
        files += 1
        assert len(list(folder.iterdir())) == files
    monkeypatch.setattr(lowering, "_source", lambda: "another")
    twice(X)
    assert len(list(folder.iterdir())) == files + 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: content[:100] + bytes([content[100] ^ 1]) + content[101:],
        lambda content: b"something else " * 100,
    ],
)
def test_a_damaged_file_is_made_anew(folder, caplog, monkeypatch, damage):
    twice(X)
    [path] = folder.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    np.testing.assert_array_equal(twice(X), 2 * X)
    [message] = caplog.messages
    assert str(path) in message and "is damaged" in message
    monkeypatch.setattr(lowering, "_export", no_export)
    np.testing.assert_array_equal(twice(X), 2 * X)


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(folder):
    folder.write_text("in the way")
    np.testing.assert_array_equal(twice(X), 2 * X)


EIGHT = """
import sys
import jax
import jax.numpy as jnp
from mnist_jax.training import lowering

lowering.uses_compile_cache = lambda: True

def work(process):
    x = jnp.arange(4.0)
    program = jax.jit(lambda x: 2 * x)
    for _ in range(3):
        lowered = lowering.lower_program("twice", program, [x], 0, "")
        assert lowered.compile()(x).tolist() == [0, 2, 4, 6]
"""


def test_eight_processes_may_keep_a_program_at_once(folder):
    run_at_once(EIGHT)
    assert len(list(folder.iterdir())) == 1
