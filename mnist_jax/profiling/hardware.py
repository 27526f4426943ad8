"""The peak float32 matmul rate of this machine, as a reference for programs."""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

SIZES = (1024, 2048)
REPEATS = 8


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
        for name, multiply in (
            ("numpy", partial(np.matmul, matrix, matrix)),
            ("xla", partial(xla_matmul, on_device, on_device)),
        ):
            jax.block_until_ready(multiply())  # a warm-up
            for _ in range(REPEATS):
                start = time.perf_counter()
                jax.block_until_ready(multiply())
                gflops = 2 * size**3 / (time.perf_counter() - start) / 1e9
                peaks[name] = max(peaks[name], gflops)
    return {name: round(peak, 1) for name, peak in peaks.items()}
