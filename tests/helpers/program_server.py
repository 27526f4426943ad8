"""Runs programs in forks of a process that has imported them, which is fast.

python tests/helpers/program_server.py < requests as JSON lines > outcomes as JSON lines
"""

import importlib
import json
import os
import signal
import sys
import tempfile
import traceback
from typing import Any

SECONDS = 240  # CPU time after which a program counts as hung
PROGRAMS = [
    *(
        f"experiments.{name}"
        for name in "train predict demo plot summary data export".split()
    ),
    *(
        f"benchmarks.{name}"
        for name in "compare report throughput speedrun sweep".split()
    ),
    *("benchmarks.published.__main__", "benchmarks.regress"),
]
PACKAGES = ("benchmarks.published", "benchmarks.peers")


def flags_of(program: Any) -> dict[str, str]:
    """Returns the flags that a program defines, each with the class of its parser."""
    from absl import flags

    before = set(flags.FLAGS)
    program.run_program = lambda main: None
    program.run()
    names = sorted(set(flags.FLAGS) - before)
    return {name: type(flags.FLAGS[name].parser).__name__ for name in names}


def refusals(program: Any, lines: list[str]) -> list[str]:
    """Returns the messages with which a program refuses command lines."""
    from absl import flags

    from mnist_jax.cli.parsing import parse_flags
    from mnist_jax.errors import InputError

    flags_of(program)  # defines them
    messages = []
    for line in lines:
        for name in flags.FLAGS:
            flags.FLAGS[name].unparse()
        try:
            parse_flags([program.__name__, *line.split()])
            program.main()
            messages.append("accepted")
        except (InputError, OSError) as error:
            messages.append(str(error))
    return messages


def run_child(request: dict[str, Any], out: int, err: int) -> None:
    """Runs a program in this process, then exits."""
    os.setsid()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.environ.update(request["environment"])
    if "JAX_ENABLE_X64" in request["environment"]:  # read when JAX was imported
        importlib.import_module("jax").config.update("jax_enable_x64", True)
    name = request["program"] + ".__main__" * (request["program"] in PACKAGES)
    sys.argv = [name, *request["arguments"]]  # flags belong to the module
    status = 0
    try:
        program = importlib.import_module(name)
        if request["mode"] == "flags":
            print(json.dumps(flags_of(program)))
        elif request["mode"] == "refuse":
            messages = refusals(program, request["arguments"])
            print(json.dumps(messages), file=sys.stderr)  # stdout has what mains print
        else:
            if request["mode"] == "parse":
                program.main = lambda: None
            program.run()
    except SystemExit as exit:
        status = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def outcome(request: dict[str, Any]) -> dict[str, Any]:
    """Runs a program in a fork and returns its exit status and output."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            run_child(request, out.fileno(), err.fileno())
        _, status = os.waitpid(child, 0)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return {
        "returncode": os.waitstatus_to_exitcode(status),
        "stdout": texts[0],
        "stderr": texts[1],
    }


def main() -> None:
    """Answers requests until the end of the input."""
    sys.path.insert(0, os.getcwd())
    for program in PROGRAMS:
        importlib.import_module(program)
    for line in sys.stdin:
        print(json.dumps(outcome(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
