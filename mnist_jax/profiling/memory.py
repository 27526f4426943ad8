"""Peak memory of this process; imports no JAX, for use with other frameworks."""

import resource
import sys
from pathlib import Path


def peak_megabytes() -> float:
    """Returns the peak resident memory of this process in MB (10^6 bytes)."""
    try:
        # Not getrusage: on Linux a child process inherits its parent's maximum.
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    except (OSError, IndexError):
        usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return usage / 1e6 if sys.platform == "darwin" else usage * 1024 / 1e6
