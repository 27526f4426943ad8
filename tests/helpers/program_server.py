"""Runs programs in forks of a process that has imported them, which is fast.

python tests/helpers/program_server.py MODULE ... < requests > outcomes, both JSON lines
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
    for name, value in request["environment"].items():
        if name.startswith("JAX_"):  # was read when JAX was imported
            config = importlib.import_module("jax").config
            config.update(name.lower(), {"1": True}.get(value, value))
    sys.argv = [request["program"], *request["words"]]  # flags belong to the module
    status = 0
    try:
        program: Any = importlib.import_module(request["program"])
        if request["mode"] == "flags":
            print(json.dumps(flags_of(program)))
        elif request["mode"] == "refuse":
            messages = refusals(program, request["words"])
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
    code = os.waitstatus_to_exitcode(status)
    return dict(zip(("returncode", "stdout", "stderr"), (code, *texts), strict=True))


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    for module in sys.argv[1:]:
        importlib.import_module(module)
    for line in sys.stdin:
        print(json.dumps(outcome(json.loads(line))), flush=True)
