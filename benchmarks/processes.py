"""Runs modules of this project as workers: processes that answer in lines of JSON."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnist_jax.errors import InputError


class Worker(contextlib.AbstractContextManager["Worker"]):
    """A process of a module, ended at the end of its `with` block.

    The variables of `environment` are set besides those of this process.
    """

    def __init__(
        self,
        module: str,
        *arguments: str,
        environment: Mapping[str, str] = {},
        folder: Path | None = None,
    ) -> None:
        self._process: Any = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=folder,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def read(self) -> dict[str, Any]:
        """Returns its next answer; what else it prints is passed over.

        If it ended instead, its last line becomes an InputError.
        """
        message = "it printed nothing"
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
            message = line.strip() or message
        raise InputError(message.removeprefix("error: "))

    def ask(self, line: object = "") -> dict[str, Any]:
        """Writes a line to its input and returns the answer, as `read`."""
        with contextlib.suppress(BrokenPipeError):  # `read` finds the reason
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        return self.read()

    def end(self) -> None:
        """Ends it at once."""
        self._process.kill()
        self._process.communicate()

    def __exit__(self, *error: object) -> None:
        self.end()
