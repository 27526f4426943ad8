"""JAX's coordination service in a process of its own.

JAX runs it in process 0 of a job, and the clients that lose it abort with a stack trace
(https://docs.jax.dev/en/latest/fault_tolerance.html). Here it outlives process 0, so
that the others can tell why they end. It can go once a client reports the loss as an
exception: `missed_heartbeat_callback` cannot be used from Python (std::bad_cast, jaxlib
0.10.2 and 0.12.0.1).
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

# After the end of process 0, until the others have ended: if it died; if all end.
LINGER_SECONDS = 20.0
SHORT_LINGER_SECONDS = 0.3

# The standard input is closed by the end of process 0.
_PROGRAM = """
import json, os, sys, time
arguments = json.loads(sys.argv[1])
sys.path[:], address, processes, options, linger, short_linger = arguments
from jaxlib import _jax
service = _jax.get_distributed_runtime_service(address, processes, **options)
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
print("listening", flush=True)
time.sleep(short_linger if sys.stdin.read() else linger)
"""


class CoordinationService:
    """What `jax.distributed` needs of its service."""

    def __init__(self, address: str, processes: int, **options: Any) -> None:
        """Starts the service; the arguments are JAX's."""
        lingers = LINGER_SECONDS, SHORT_LINGER_SECONDS
        path = [*map(str, sys.path)]
        arguments = json.dumps([path, address, processes, options, *lingers])
        self._process = subprocess.Popen(
            # Isolated: no module of the current folder hides one of Python's.
            [sys.executable, "-I", "-c", _PROGRAM, arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # the terminal's Ctrl-C is for process 0
        )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            lines = self._process.communicate()[1].decode(errors="replace").split("\n")
            reason = next(filter(str.strip, reversed(lines)), "it printed no error")
            raise RuntimeError(
                f"its service cannot be started at {address}: {reason.strip()}"
            )

    def all_end(self) -> None:
        """Ends the service soon after this process, since all others end too."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it was killed
            self._process.stdin.write(b"all end")
            self._process.stdin.flush()

    def shutdown(self) -> None:
        """Ends the service at once."""
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def in_own_process() -> Iterator[None]:
    """Lets `jax.distributed.initialize` in the block start the service like this."""
    from jax._src.lib import _jax

    start = _jax.get_distributed_runtime_service
    _jax.get_distributed_runtime_service = CoordinationService
    try:
        yield
    finally:
        _jax.get_distributed_runtime_service = start
