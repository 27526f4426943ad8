"""Operations on random arrays, with their gradients."""

import jax
import jax.numpy as jnp
import numpy as np

NHWC = ("NHWC", "HWIO", "NHWC")


def arrays(*shapes, seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def results(function, *args):
    """Returns a function's value, and its gradients for a random cotangent."""

    def loss(*args):
        y = function(*args)
        return jnp.sum(y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)), y

    run = jax.jit(jax.value_and_grad(loss, tuple(range(len(args))), has_aux=True))
    (_, y), gradients = run(*args)
    return y, *gradients
