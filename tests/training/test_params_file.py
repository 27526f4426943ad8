"""Parameter files: damaged files and other networks are refused."""

import hashlib

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers.runs import flip_bit

from mnist_jax.data.types import IMAGE_SHAPE
from mnist_jax.errors import InputError
from mnist_jax.models.networks import MLP, init_model, variable_shapes
from mnist_jax.testing import assert_trees_close
from mnist_jax.training.checkpoints import load_params, params_sha256, save_params

MODEL = MLP((16,), 10)
PARAMS = init_model(MODEL, jax.random.key(0), IMAGE_SHAPE)


@pytest.fixture
def path(tmp_path):
    """A file with parameters."""
    path = tmp_path / "params.msgpack"
    save_params(path, PARAMS)
    return path


def test_parameters_round_trip_and_their_sha256_is_the_files(path):
    sha256 = params_sha256(PARAMS)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    assert_trees_close(load_params(path, PARAMS, sha256), PARAMS, 0)
    other = jax.tree.map(lambda leaf: leaf + 1, PARAMS)
    assert params_sha256(other) != sha256


@flax.struct.dataclass
class Pair:
    """A node that JAX can flatten."""

    scale: jax.Array
    more: tuple


def test_any_tree_that_jax_can_flatten_round_trips(tmp_path):
    """Integers as names, in numeric order, tuples, boxes, scalars and bfloat16."""
    layers = {number: np.float32([number]) for number in range(12)}
    pair = Pair(np.float32(0.25), ({("a", "b"): jnp.ones(2, jnp.bfloat16)}, [PARAMS]))
    box = nn.Partitioned(np.ones(3), ("x",))
    tree = jax.tree.map(jnp.asarray, {"layers": layers, "box": box, "pair": pair})
    like = jax.eval_shape(lambda: tree)
    save_params(tmp_path / "a", tree)
    loaded = load_params(tmp_path / "a", like, params_sha256(tree))
    assert_trees_close(loaded, tree, 0)


def test_a_damaged_file_is_named(path):
    flip_bit(path)
    with pytest.raises(InputError, match="params.msgpack is damaged: its .* sha256"):
        load_params(path, PARAMS, params_sha256(PARAMS))


def test_parameters_of_another_network_are_refused_by_leaf(path):
    other = variable_shapes(MODEL.clone(hidden=(17,)), IMAGE_SHAPE)
    with pytest.raises(InputError, match=r"Dense_0/bias is float32\[17\] here and "):
        load_params(path, other, params_sha256(PARAMS))
