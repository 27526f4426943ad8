"""Starts Python in separate processes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
# Calls `work(process)` in eight processes that start at the same time. They are forked
# from one, which does the imports once, and wait at a pipe until all exist.
AT_ONCE = """
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


class Finished(NamedTuple):
    """The exit status and output of a program."""

    returncode: int
    stdout: str
    stderr: str


def start_python(
    *words: object, cwd: Path = ROOT, **environment: str
) -> subprocess.Popen[str]:
    """Starts Python with arguments such as `-m PROGRAM`, to read while it runs."""
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env={**os.environ, "MNIST_JAX_DATA_DIR": "", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> Finished:
    """Waits for a process, which is killed after minutes."""
    try:
        output = process.communicate(timeout=300)
    finally:
        process.kill()
    return Finished(process.returncode, *output)


def run_python(
    *words: object, ok: bool = True, cwd: Path = ROOT, **environment: str
) -> Finished:
    """Runs Python; with `ok`, it must succeed."""
    finished = finish(start_python(*words, cwd=cwd, **environment))
    assert finished.returncode == 0 or not ok, finished.stdout + finished.stderr
    return finished
