"""Measures the matmul peak of all cores: a worker of `benchmarks.peers`.

python -m benchmarks.peers.matmul_worker
"""

import json

from absl import app

from mnist_jax.profiling.hardware import matmul_peaks

if __name__ == "__main__":
    app.run(lambda _: print(json.dumps(matmul_peaks())))
