"""Tries command lines on one program, which is imported once and forked for each.

python tests/helpers/flag_runner.py PROGRAM < lists of arguments as JSON > outcomes
"""

import importlib
import json
import os
import signal
import sys
import tempfile
import traceback
from typing import Any

from absl import flags

SECONDS = 120  # of computing, in which a refusal must have come


def flags_of(program: Any) -> list[str]:
    """Returns the names of the flags that a program defines."""
    before = set(flags.FLAGS)
    program.run_program = lambda main: None
    program.run()
    return sorted(set(flags.FLAGS) - before)


def outcome(program: Any, arguments: list[str]) -> dict[str, Any]:
    """Runs the program in a fork: exit status and what it printed."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.argv = [program.__name__, *arguments]
            status = 0
            try:
                program.run()
            except SystemExit as exit:
                status = exit.code if isinstance(exit.code, int) else 1
            except BaseException:
                traceback.print_exc()
                status = 70
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        _, status = os.waitpid(child, 0)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return {
        "status": os.waitstatus_to_exitcode(status),
        "stdout": texts[0],
        "stderr": texts[1],
    }


def main() -> None:
    """Answers with the outcomes in order, then the program's flags."""
    sys.path.insert(0, os.getcwd())
    program = importlib.import_module(sys.argv[1])
    outcomes = [outcome(program, arguments) for arguments in json.load(sys.stdin)]
    print(json.dumps([outcomes, flags_of(program)]))


if __name__ == "__main__":
    main()
