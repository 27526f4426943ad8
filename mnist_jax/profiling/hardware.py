"""The float32 matrix product rate of this machine, by which programs are judged."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SIZES = (1024, 2048)
REPEATS = 8


def best_gflops(multiply: Callable[[], Any], size: int) -> float:
    """Returns the highest rate of several products, after one to warm up."""
    rates = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        multiply()
        rates.append(2 * size**3 / (time.perf_counter() - start) / 1e9)
    return max(rates[1:])


def matmul_peaks() -> dict[str, float]:
    """Returns the peak in GFLOP/s of all cores or the device, the best over the sizes.

    By NumPy's BLAS and by XLA, so that a library that fits this processor badly does
    not make every program look good.
    """
    xla_matmul = jax.jit(jnp.matmul)
    peaks = {"numpy": 0.0, "xla": 0.0}
    for size in SIZES:
        matrix = np.random.default_rng(0).random((size, size), np.float32)
        on_device = jnp.asarray(matrix)

        def multiply(x: jax.Array = on_device) -> jax.Array:
            return jax.block_until_ready(xla_matmul(x, x))

        ways: dict[str, Callable[[], Any]]
        ways = {"numpy": partial(np.matmul, matrix, matrix), "xla": multiply}
        for name, way in ways.items():
            peaks[name] = max(peaks[name], best_gflops(way, size))
    return {name: round(peak, 1) for name, peak in peaks.items()}
