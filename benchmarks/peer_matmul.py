"""Measures the matrix product peak of all cores: a worker of `benchmarks.peers`.

python -m benchmarks.peer_matmul
"""

import json

from absl import app

from mnist_jax.peak import matmul_peaks

if __name__ == "__main__":
    app.run(lambda _: print(json.dumps(matmul_peaks())))
