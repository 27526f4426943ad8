"""The peak float32 matmul rate of this machine, as a reference for programs."""

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
    """Returns the highest rate in GFLOP/s of several products, after one warm-up."""
    rates = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        multiply()
        rates.append(2 * size**3 / (time.perf_counter() - start) / 1e9)
    return max(rates[1:])


def matmul_peaks() -> dict[str, float]:
    """Returns the peak matmul rate in GFLOP/s over `SIZES`, by NumPy and by XLA.

    NumPy's BLAS uses all cores, XLA the default device. With only one library, a slow
    one on this processor would lower the peak and make every program look fast.
    """
    xla_matmul = jax.jit(jnp.matmul)
    peaks = {"numpy": 0.0, "xla": 0.0}
    for size in SIZES:
        matrix = np.random.default_rng(0).random((size, size), np.float32)
        on_device = jnp.asarray(matrix)

        def multiply(x: jax.Array = on_device) -> jax.Array:
            return jax.block_until_ready(xla_matmul(x, x))

        libraries: dict[str, Callable[[], Any]]
        libraries = {"numpy": partial(np.matmul, matrix, matrix), "xla": multiply}
        for name, matmul in libraries.items():
            peaks[name] = max(peaks[name], best_gflops(matmul, size))
    return {name: round(peak, 1) for name, peak in peaks.items()}
