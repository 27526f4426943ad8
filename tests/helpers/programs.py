"""Runs the project's programs as a user would, and returns their output."""

import atexit
import functools
import json
import os
import subprocess
import sys

from helpers.processes import ROOT, Finished, run_python

DIGITS = ("--dataset=digits", "--hidden=16", "--epochs=2", "--batch_size=64")


def run(
    *arguments: object, ok: bool | None = True, mode: str = "run", **environment: str
) -> Finished:
    """Runs a program of the checkout in the `program_server`.

    Args:
        *arguments: the program's module, then its command line.
        ok: whether it must succeed; None if either is allowed.
        mode: "parse" only parses the command line.
        **environment: variables to set. JAX's, which are read at import, start a
            separate process, except JAX_ENABLE_X64.
    """
    program, *words = map(str, arguments)
    variables = {"MNIST_JAX_DATA_DIR": "", **environment}
    if any(name.startswith("JAX_") for name in environment.keys() - {"JAX_ENABLE_X64"}):
        process = run_python("-m", program, *words, ok=False, **variables)
    else:
        variables["MNIST_JAX_CACHE_DIR"] = variables.get(
            "MNIST_JAX_CACHE_DIR", os.environ["MNIST_JAX_CACHE_DIR"]
        )
        process = _request(program, words, variables, mode)
    assert ok in (process.returncode == 0, None), process.stdout + process.stderr
    assert "Traceback" not in process.stderr, process.stderr
    return process


@functools.cache
def flags_of(program: str) -> dict[str, str]:
    """Returns the flags that a program defines, each with the class of its parser."""
    return json.loads(_request(program, [], {}, "flags").stdout)


def refusals(program: str, lines: list[str]) -> list[str]:
    """Returns the messages with which a program refuses command lines, in order."""
    cache = os.environ["MNIST_JAX_CACHE_DIR"]
    environment = {"MNIST_JAX_DATA_DIR": "", "MNIST_JAX_CACHE_DIR": cache}
    finished = _request(program, lines, environment, "refuse")
    return json.loads(finished.stderr.splitlines()[-1])


@functools.cache
def _server() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "tests/helpers/program_server.py"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    atexit.register(process.stdin.close)
    return process


def _request(
    program: str, words: list[str], environment: dict[str, str], mode: str
) -> Finished:
    request = dict(program=program, arguments=words, environment=environment, mode=mode)
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    print(json.dumps(request), file=server.stdin, flush=True)
    return Finished(**json.loads(server.stdout.readline()))
