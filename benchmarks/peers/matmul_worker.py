"""Measures the matmul peak of all cores: a worker of `benchmarks.peers`.

python -m benchmarks.peers.matmul_worker
"""

import json

from mnist_jax.profiling.hardware import matmul_peaks

if __name__ == "__main__":
    print(json.dumps(matmul_peaks()))
