"""Start-up and error messages of the programs."""

import contextlib
import gc
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import NamedTuple

import jax
from absl import flags, logging

from mnist_jax.cli.parsing import name_flag_file, parse_flags
from mnist_jax.cli.signals import exit_status, interrupt_at_signals
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
    _keep_stdout(cluster.is_writer())
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


def _keep_stdout(keep: bool) -> None:
    """Discards what libraries print past Python, such as gloo's connections.

    Args:
        keep: whether to keep what Python prints.
    """
    sys.stdout.flush()
    kept, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    sys.stdout = open(kept if keep else null, "w", errors="backslashreplace")


def run_program(main: Callable[[], None]) -> None:
    """Parses the flags and runs a program; an error is one sentence.

    Args:
        main: function without arguments. `--help` shows its module's docstring and
            flags.
    """
    # Tables have a plus-minus sign, which the encoding of a terminal may lack.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    logging.use_absl_handler()
    if main.__module__ != "__main__":  # run by the `__main__.py` of a package
        sys.argv[0] = main.__module__
    # Not by `absl.app`, whose further flags end a program before it checks any.
    if "--help" in sys.argv:
        print(sys.modules[main.__module__].__doc__, "\nflags:", sep="")
        print(FLAGS.main_module_help())
        return
    stopped = False
    try:
        interrupt_at_signals()
        parse_flags(sys.argv)
        main()
        sys.stdout.flush()  # the disk may be full
        return
    except InputError as error:
        message, status = f"error: {name_flag_file(str(error))}", 1
    except OSError as error:  # also of a terminal that was closed, after its signal
        message = f"error: {error}; fix this and run the command again"
        status = exit_status(1)
    except Stopped as stop:  # in all processes of a job
        message, status, stopped = f"stopped: {stop}", exit_status(1), True
    except KeyboardInterrupt:
        message, status = "\ninterrupted", exit_status(130)
    except jax.errors.JaxRuntimeError as error:
        if cluster.processes() == 1:
            raise
        cluster.fail(f"the connection to another process is lost ({_first(error)})")
    cluster.hold_exit()
    with contextlib.suppress(OSError):  # of a terminal that is closed
        print(message, file=sys.stderr)
        sys.stdout.flush()
    cluster.leave("" if stopped else message.strip())
    # Without Python's clean-up, which may crash while XLA compiles in other threads,
    # and in a job waits for the other processes.
    os._exit(status)
