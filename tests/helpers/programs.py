"""Runs the project's programs as a user would, and returns their output."""

import atexit
import contextlib
import functools
import json
import os
from typing import Any

from helpers.processes import ROOT, Finished, start_python

DIGITS = ("--dataset=digits", "--hidden=16", "--epochs=2", "--batch_size=64")
# The module of each program in the checkout by what follows `python -m`.
PROGRAMS = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__"): (
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
    )
    for folder in ("experiments", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "\ndef run()" in path.read_text()
}


def run(
    program: str,
    *words: object,
    ok: bool | None = True,
    mode: str = "run",
    **environment: str,
) -> Finished:
    """Runs a program of the checkout in the `program_server`.

    Args:
        program: what follows `python -m`.
        *words: its command line.
        ok: whether it must succeed; None if either is allowed.
        mode: "parse" only parses the command line.
        **environment: variables to set.
    """
    process = _request(program, list(map(str, words)), mode, **environment)
    assert ok in (process.returncode == 0, None), process.stdout + process.stderr
    assert "Traceback" not in process.stderr, process.stderr
    return process


@functools.cache
def flags_of(program: str) -> dict[str, str]:
    """Returns the flags that a program defines, each with the class of its parser."""
    return json.loads(_request(program, [], "flags").stdout)


def refusals(program: str, lines: list[str]) -> list[str]:
    """Returns the messages with which a program refuses command lines, in order."""
    return json.loads(_request(program, lines, "refuse").stderr.splitlines()[-1])


@functools.cache
def _server() -> Any:
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    words = "tests/helpers/program_server.py", *PROGRAMS.values()
    return stack.enter_context(start_python(*words, stderr=None))


def _request(program: str, words: list[str], mode: str, **environment: str) -> Finished:
    changed_by_tests = "MNIST_JAX_CACHE_DIR", "XLA_FLAGS"
    environment = {name: os.environ[name] for name in changed_by_tests} | environment
    name = PROGRAMS[program]
    request = dict(program=name, words=words, mode=mode, environment=environment)
    server = _server()
    print(json.dumps(request), file=server.stdin, flush=True)
    return Finished(**json.loads(server.stdout.readline()))
