"""Start-up, stop and error messages of the programs."""

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
from absl import flags, logging

from mnist_jax.cli.parsing import parse_flags
from mnist_jax.errors import InputError, Stopped
from mnist_jax.training import distributed
from mnist_jax.training.jax_setup import setup

FLAGS = flags.FLAGS
# Of Ctrl-C, of schedulers, of a closed terminal, and of Slurm before the time is up.
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU]


def chosen_machine() -> dict[str, Any]:
    """Returns the arguments of `setup` that the flags give."""
    given = FLAGS.flag_values_dict()
    return dict(
        platform=given.get("platform"),
        cpu_devices=given.get("cpu_devices") or 0,
        compile_cache=given.get("compile_cache") != "off",
    )


def start_jax(**changes: Any) -> None:
    """Sets JAX up and connects the processes of a job.

    `changes` are arguments of `setup` that differ from what the flags give.
    """
    machine = chosen_machine() | changes
    # What imports created stays alive. Scanning it at each garbage collection would
    # take a tenth of the time of tracing and lowering.
    gc.freeze()
    if not machine["compile_cache"]:  # nor the one of JAX_COMPILATION_CACHE_DIR
        jax.config.update("jax_enable_compilation_cache", False)
    if "cluster" in FLAGS:
        job = FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id
        if FLAGS.cluster == "auto" or job != (None, None, None):
            distributed.start(*job, timeout=FLAGS.cluster_timeout)
    setup(**machine)
    if not distributed.is_writer():
        sys.stdout = open(os.devnull, "w")


@contextlib.contextmanager
def stop_between_chunks(message: str) -> Iterator[Callable[[], None]]:
    """Defers the first signal until the program can stop cleanly; a second ends it.

    Yields a function to call between chunks. After a signal it raises `Stopped` with
    the message, in all processes of a job at the same chunk.
    """
    received = [0]

    def remember(number: int, _: Any) -> None:
        received[0] = number
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    def check() -> None:
        if number := int(distributed.gather(received[0]).max()):
            raise Stopped(number, message)

    before = {number: signal.signal(number, remember) for number in SIGNALS}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_program(main: Callable[[], None]) -> None:
    """Parses the flags and runs a program; an error is one sentence.

    `--help` shows the docstring of `main`'s module and the flags.
    """
    # Tables have a plus-minus sign, which the encoding of a terminal may lack.
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    logging.use_absl_handler()
    # Not by `absl.app`, whose further flags end a program before it checks any.
    if "--help" in sys.argv:
        print(sys.modules[main.__module__].__doc__, "\nflags:", sep="")
        print(FLAGS.main_module_help())
        return
    # A shell's background job starts with it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        parse_flags(sys.argv)
        main()
        sys.stdout.flush()  # the disk may be full
        return
    except (InputError, OSError) as error:
        message, status = f"error: {error}", 1
    except Stopped as stop:
        message, status = f"stopped: {stop}", 128 + stop.number
    except KeyboardInterrupt:
        message, status = "\ninterrupted", 130
    with contextlib.suppress(OSError):  # of a terminal that is closed
        print(message, file=sys.stderr, flush=True)
        sys.stdout.flush()
    # Without Python's clean-up, which may crash while XLA compiles in other threads,
    # and in a job waits for the other processes.
    os._exit(status)
