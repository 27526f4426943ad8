"""The peak float32 matmul rate of this machine, and the peak memory of a process.

The module imports no JAX, so that processes of other frameworks can measure with it.
"""

import resource
import sys
import time
from pathlib import Path

import numpy as np

SIZES = (1024, 2048)
REPEATS = 9


def matmul_peak() -> float:
    """Returns the peak rate of float32 matrix products in GFLOP/s, by NumPy or by XLA.

    NumPy's BLAS uses all cores, XLA the default device. With only one library, a slow
    one on this processor would lower the peak and make every program look fast.
    """
    import jax

    peak = 0.0
    for size in SIZES:
        matrix = np.random.default_rng(0).random((size, size), np.float32)
        libraries = (
            (np.matmul, matrix),
            (jax.jit(jax.numpy.matmul), jax.device_put(matrix)),
        )
        for multiply, operand in libraries:
            for _ in range(REPEATS):  # the first one compiles
                start = time.perf_counter()
                jax.block_until_ready(multiply(operand, operand))
                seconds = time.perf_counter() - start
                peak = max(peak, 2 * size**3 / seconds / 1e9)
    return peak


def peak_megabytes() -> float:
    """Returns the peak resident memory of this process in MB (10^6 bytes)."""
    try:
        # Not getrusage: on Linux a child process inherits its parent's maximum.
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    except (OSError, IndexError):
        usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return usage / 1e6 if sys.platform == "darwin" else usage * 1024 / 1e6
