"""Runs Python scripts in separate processes."""

import subprocess
import sys
from pathlib import Path

# Calls `work(process)` in eight processes that start at the same time. They are forked
# from one, which does the imports once, and wait at a pipe until all exist.
_AT_ONCE = """
import os

reader, writer = os.pipe()
children = []
for process in range(8):
    children.append(os.fork())
    if children[-1] == 0:
        os.close(writer)
        os.read(reader, 1)  # returns when the parent closes its end
        work(process)
        os._exit(0)
os.close(writer)
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
"""


def run_script(script: str, *arguments: object) -> str:
    """Runs a Python script in a separate process and returns its output."""
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
    """Runs the function `work(process)` of a script in eight processes at once."""
    run_script(script + _AT_ONCE, *arguments)
