"""Runs `python -m benchmarks.published`."""

from .table import run

run()
