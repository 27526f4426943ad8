"""Products and convolutions with bfloat16 operands equal float32 up to rounding."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.operations import arrays, results

from mnist_jax.models import precision
from mnist_jax.models.rewrite import rewrite


@pytest.mark.parametrize(
    "equation, left, right",
    [
        ("ij,jk->ik", (5, 4), (4, 3)),
        ("bqhd,bkhd->bhqk", (2, 5, 3, 4), (2, 6, 3, 4)),
        ("ijk,ljk->il", (5, 2, 4), (3, 2, 4)),
        ("i,i->", (5,), (5,)),
    ],
)
def test_products_with_bfloat16_operands(equation, left, right):
    """Operands are rounded in the product and in its gradients; results are float32."""
    inputs = arrays(left, right)

    def function(x, y):
        return jnp.einsum(equation, x, y)

    fast = rewrite(function, precision.RULES)
    rounded = [x.astype(jnp.bfloat16).astype(jnp.float32) for x in inputs]
    got, want = results(fast, *inputs), results(function, *rounded)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5, atol=1e-6)
    for a, b in zip(got[1:], want[1:], strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=2e-2 * np.abs(b).max())
