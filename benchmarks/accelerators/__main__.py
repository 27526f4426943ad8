"""Entry point of `python -m benchmarks.accelerators`."""

from .measure import run

run()
