"""Runs modules of this project as workers: processes that answer in lines of JSON."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnist_jax.errors import InputError


class Worker:
    """A process of a module, ended at the end of its `with` block."""

    def __init__(
        self,
        module: str,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        """Starts the process.

        Args:
            module: the module to run.
            *arguments: its command line.
            environment: variables to set, besides those of this process.
            folder: where to run it; by default where this process runs.
        """
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def read(self) -> dict[str, Any]:
        """Returns its next answer; what else it prints is passed over.

        Raises:
            InputError: it ended instead, with the last line of its error output.
        """
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        message = lines[-1].removeprefix("error: ") if lines else f"status {status}"
        raise InputError(message)

    def ask(self, line: object = "") -> dict[str, Any]:
        """Writes a line to its input and returns the answer, as `read`."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `read` finds the reason
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        return self.read()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()
