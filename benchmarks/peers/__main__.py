"""Entry point of `python -m benchmarks.peers`."""

from .race import run

run()
