"""Starts Python in separate processes, which end with the test that started them."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

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


@contextlib.contextmanager
def start_python(
    *words: object,
    cwd: Path = ROOT,
    stderr: int | None = subprocess.PIPE,
    **environment: str,
) -> Iterator[Any]:
    """Starts Python with arguments such as `-m PROGRAM`; kills it at the end."""
    with subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env={**os.environ, "MNIST_JAX_DATA_DIR": "", **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: Any, pattern: str) -> list[str]:
    """Returns the lines that a process prints, up to the first with a pattern."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.search(pattern, line):
            return lines
    raise AssertionError(f"no {pattern} in {lines}; {process.stderr.read()}")


def finish(process: Any) -> Finished:
    """Waits for a process, but not longer than minutes."""
    output = process.communicate(timeout=300)
    return Finished(process.returncode, *output)


def run_python(*words: object, ok: bool = True, **options: Any) -> Finished:
    """Runs Python, as `start_python`; with `ok`, it must succeed."""
    with start_python(*words, **options) as process:
        finished = finish(process)
    assert finished.returncode == 0 or not ok, finished.stdout + finished.stderr
    return finished
