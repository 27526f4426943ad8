"""Runs Python texts in processes of their own."""

import subprocess
import sys
from pathlib import Path

# Calls `work(process)` in eight processes that begin at the same moment: forked from
# one, so that only one pays for the imports, and held at a pipe until all are there.
_AT_ONCE = """
import os

here, start = os.pipe()
children = []
for process in range(8):
    children.append(os.fork())
    if children[-1] == 0:
        os.close(start)
        os.read(here, 1)  # ends when the parent closes its side
        work(process)
        os._exit(0)
os.close(start)
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
"""


def run_script(script: str, *arguments: object) -> str:
    """Runs a Python text in a process of its own and returns its output."""
    process = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def run_at_once(script: str, *arguments: object) -> None:
    """Runs the function `work(process)` that a text defines in eight processes."""
    run_script(script + _AT_ONCE, *arguments)
