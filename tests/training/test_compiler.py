"""A fault of XLA:CPU that `compiler_options` prevents."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from helpers.trained import make_run

from mnist_jax.data.types import IMAGE_SHAPE
from mnist_jax.export.formats import export_run
from mnist_jax.models.networks import init_model
from mnist_jax.testing.steps import make_split, preprocess
from mnist_jax.training import epochs
from mnist_jax.training.epochs import make_programs
from mnist_jax.training.mesh import make_mesh, seed_keys
from mnist_jax.training.steps import cross_entropy


class RowSums(nn.Module):
    """Sums over matrix products, which XLA:CPU compiles wrongly by default."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        def sums(x: jax.Array) -> jax.Array:
            return (x @ jnp.full((28, 28), 1 / 28)).sum(-1)

        def shift(key: jax.Array) -> jax.Array:
            return sums(jax.random.normal(key, (100, 28, 28)))[0]

        h = sums(nn.Dense(28)(images)) + self.param("shift", shift)[None]
        return nn.Dense(10)(h)


@pytest.mark.parametrize(
    "safe", [True, pytest.param(False, marks=pytest.mark.xfail(reason="jax#39103"))]
)
def test_sums_over_matrix_products_are_right(safe, tmp_path, monkeypatch):
    """Where it passes without `compiler_options` on every version, they can go."""
    if not safe:
        monkeypatch.setattr(epochs, "compiler_options", lambda platform: {})
    run = make_run(model=f"{__file__}:RowSums")
    model, split = RowSums(), make_split(1_200)  # more than 32,768 rows
    images, order = split.images, np.arange(1_200, dtype=np.int32)[None]
    # One operation after the other, not compiled together.
    logits = model.apply(run.variables, preprocess(images))
    loss = [float(cross_entropy(logits, split.labels).sum())]
    np.testing.assert_allclose(run.predict(images), jax.nn.softmax(logits), atol=1e-5)
    programs = make_programs(
        model, optax.sgd(0.1), preprocess, make_mesh(1), IMAGE_SHAPE
    )
    keys = seed_keys([0])
    shift = init_model(model, keys[0], IMAGE_SHAPE)["params"]["shift"]
    got = programs.init(keys).params["shift"]
    np.testing.assert_allclose(got, [shift], rtol=1e-4)
    variables = jax.tree.map(lambda leaf: leaf[None], run.variables)
    tested = programs.evaluate(variables, split, order)
    np.testing.assert_allclose(tested.loss_sum, loss, rtol=1e-5)
    assert export_run(run, "stablehlo", tmp_path / "network", images) < 1e-5
