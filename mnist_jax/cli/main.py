"""Start-up and error messages of the programs."""

import gc
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import NamedTuple

import jax
from absl import app, flags, logging

from mnist_jax.cli.parsing import parse_flags
from mnist_jax.cli.signals import exit_after_signal, interrupt_at_signals
from mnist_jax.cli.streams import keep_stdout, output_error, protect_streams
from mnist_jax.errors import InputError, Stopped
from mnist_jax.training import cluster
from mnist_jax.training.setup import setup

FLAGS = flags.FLAGS


_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")  # compared in a job
# Flags with which the processes of a job may differ: only process 0 keeps files.
_OWN_FLAGS = ("process_id", "data_dir", "run_dir", "out", "compile_cache", "quiet")


def start_job() -> None:
    """Connects the processes of a job, if the flags ask for one.

    Raises:
        InputError: as `cluster.start`, or the processes have different flags.
    """
    given = [FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id]
    if FLAGS.cluster == "auto":
        if given != [None] * 3:
            raise InputError(
                "--cluster=auto takes --coordinator, --num_processes and --process_id "
                "from the cluster; give either it or them"
            )
    elif FLAGS.coordinator is None:
        if given != [None] * 3:
            raise InputError(
                "--num_processes and --process_id need --coordinator, the host:port of "
                "process 0; give all three, or none for a single process"
            )
        return
    cluster.start(
        FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id, FLAGS.cluster_timeout
    )
    keep_stdout(cluster.is_writer())
    if not cluster.is_writer() and "quiet" in FLAGS:
        FLAGS["quiet"].value = True
    shared = {
        f"--{flag.name}": flag.value
        for module, found in FLAGS.flags_by_module_dict().items()
        if not module.startswith("absl.")
        for flag in found
        if flag.name not in _OWN_FLAGS
    }
    versions = {f"the version of {name}": version(name) for name in _PACKAGES}
    program = os.path.basename(sys.argv[0])  # hosts may have it at different paths
    values = {"the program": program, **versions, **shared}
    cluster.agree("flags", values, "start all processes with the same command")


class Machine(NamedTuple):
    """How a process is to set JAX up; the fields are as for `setup`."""

    platform: str | None
    cpu_devices: int
    compile_cache: bool


def chosen_machine() -> Machine:
    """Returns the machine given by the flags."""
    devices = (FLAGS.cpu_devices if "cpu_devices" in FLAGS else None) or 0
    return Machine(FLAGS.platform, devices, FLAGS.compile_cache == "on")


def start_jax(machine: Machine | None = None) -> None:
    """Sets JAX up, by default from the flags; raises as `setup`."""
    machine = machine or chosen_machine()
    # Objects created by imports stay alive. Scanning them in every collection would
    # take a tenth of the time of tracing and lowering.
    gc.freeze()
    if not machine.compile_cache:  # nor the one of JAX_COMPILATION_CACHE_DIR
        jax.config.update("jax_enable_compilation_cache", False)
    setup(*machine)


def _first(error: Exception) -> str:
    return str(error).splitlines()[0][:200]


def run_program(main: Callable[[], None]) -> None:
    """Parses the flags, runs a program and exits; an error is one sentence.

    Args:
        main: function without arguments. `--help` shows its module's docstring and
            flags.
    """
    protect_streams()
    if main.__module__ != "__main__":  # run by the `__main__.py` of a package
        sys.argv[0] = main.__module__
        sys.modules["__main__"].__doc__ = sys.modules[main.__module__].__doc__

    def checked(_: None) -> None:
        logging.set_verbosity(logging.WARNING)  # JAX logs every backend that is missing
        main()
        if error := output_error():
            raise InputError(
                f"cannot write to standard output: {error.strerror}; redirect it "
                "elsewhere (all files of the program are complete)"
            )

    status, stopped = None, False
    try:
        interrupt_at_signals()
        app.run(checked, flags_parser=parse_flags)
    except InputError as error:
        message, status = f"error: {error}", 1
    except OSError as error:
        message, status = f"error: {error}; fix this and run the command again", 1
    except Stopped as stop:  # in all processes of a job
        message, stopped = f"stopped: {stop}", True
    except KeyboardInterrupt:
        message = "\ninterrupted"
    except jax.errors.JaxRuntimeError as error:
        if cluster.processes() == 1:
            raise
        cluster.fail(f"the connection to another process is lost ({_first(error)})")
    finally:  # so that a caller that catches SystemExit can run a program again
        for flag in FLAGS.get_flags_for_module(main.__module__):
            delattr(FLAGS, flag.name)
    cluster.hold_exit()
    print(message, file=sys.stderr)
    cluster.leave(message.strip() if status or not stopped else "")
    if status is None:
        exit_after_signal()
    if cluster.processes() > 1:
        os._exit(status)  # JAX would wait for the other processes
    sys.exit(status)
