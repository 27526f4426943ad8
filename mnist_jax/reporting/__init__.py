"""Tables, plots and pages of finished runs, and the progress of those in training."""

import importlib.util
import os

# Matplotlib cannot be imported while $MPLBACKEND names a module that is not installed
# here, as in a program that the kernel of a notebook starts. No picture needs one.
_backend = os.environ.get("MPLBACKEND", "")
if _backend.startswith("module://"):
    if importlib.util.find_spec(_backend[len("module://") :].split(".")[0]) is None:
        os.environ["MPLBACKEND"] = "agg"
