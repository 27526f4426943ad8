"""Entry point of `python -m benchmarks.published`."""

from .table import run

run()
