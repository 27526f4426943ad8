"""Comparisons of trees, and contexts without compiling or transfers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax.testing import assert_trees_close, no_compiling, no_transfers


def make_tree(**changes):
    kernel = jnp.array([0.5, -2.0, 1.0])
    return {"kernel": kernel, "seen": np.int32(2), "key": jax.random.key(0), **changes}


def test_equal_and_close_trees_pass():
    assert_trees_close(make_tree(), make_tree(), rtol=0)
    near = make_tree(kernel=jnp.array([0.5 + 1e-5, -2.0, 1.0]))
    assert_trees_close(near, make_tree())
    missing = make_tree(kernel=jnp.array([jnp.nan, 0, 0]))
    assert_trees_close(missing, missing, equal_nan=True)


@pytest.mark.parametrize(
    "got, message",
    [
        (make_tree(kernel=jnp.zeros(2)), r"kernel is float32\[2\], not float32\[3\]"),
        (make_tree(kernel=np.zeros(3)), r"kernel is float64\[3\], not float32\[3\]"),
        (make_tree(more=1), "more is int32.*, not missing"),
        ({"kernel": make_tree()["kernel"]}, "key is missing"),
        ([*make_tree().values()], "0 is .*, not missing|kernel is missing"),
        (make_tree(key=jax.random.key(1)), "key differs in 1 of 2 values"),
        (
            make_tree(seen=np.int32(3)),
            "seen differs in 1 of 1 values, such as 3, not 2",
        ),
        (
            make_tree(kernel=jnp.array([0.5, jnp.nan, 1.0])),
            "kernel differs in 1 of 3 values, such as nan, not -2",
        ),
        (
            make_tree(kernel=jnp.array([0.5 + 1e-4, -2.0, 1.0])),
            "kernel differs in 1 of 3 .* 0.5001, not 0.5; allowed .* 2e-05",
        ),
    ],
)
def test_a_difference_is_named(got, message):
    with pytest.raises(AssertionError, match=message):
        assert_trees_close(got, make_tree())


def test_nan_is_not_nan_unless_asked():
    tree = make_tree(kernel=jnp.array([jnp.nan, 0, 0]))
    with pytest.raises(AssertionError, match="such as nan, not nan"):
        assert_trees_close(tree, tree)


def test_complex_numbers_are_compared():
    assert_trees_close(np.complex64(1j), np.complex64(1j))
    with pytest.raises(AssertionError, match=r"such as 0\+1j, not 0\+2j"):
        assert_trees_close(np.complex64(1j), np.complex64(2j))


def test_tuples_are_not_lists():
    with pytest.raises(AssertionError, match="the tree is"):
        assert_trees_close([np.float32(1)], (np.float32(1),))


def test_compiling_is_refused():
    double = jax.jit(lambda x: 2 * x)
    double(np.float32(1))
    with no_compiling():
        double(np.float32(2))
    with (
        pytest.raises(AssertionError, match=r"compiled jit\(<lambda>\)"),
        no_compiling(),
    ):
        double(np.zeros(2, np.float32))


def test_transfers_are_refused():
    double, x = jax.jit(lambda x: 2 * x), jnp.ones(3)
    with no_transfers():
        double(x)
    with pytest.raises(AssertionError, match="transfer"), no_transfers():
        double(np.ones(3))
