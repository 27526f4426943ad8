"""How much memory this process needed; without JAX, to be measured beside others."""

import resource
import sys
from pathlib import Path


def peak_megabytes() -> float:
    """Returns the largest resident memory this process had, in MB of 10^6 bytes."""
    try:
        # Not getrusage: Linux hands a parent's maximum on to the programs it starts.
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    except (OSError, IndexError):
        usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return usage / 1e6 if sys.platform == "darwin" else usage * 1024 / 1e6
