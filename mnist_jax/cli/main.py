"""What every program does first: its flags for the machine, JAX's settings, errors."""

import gc
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging

from mnist_jax.config import MODELS, TrainConfig
from mnist_jax.data.datasets import Dataset, load_dataset, scale_pixels
from mnist_jax.errors import InputError, Stopped
from mnist_jax.records.schema import available_cores
from mnist_jax.training.compile_cache import use_compile_cache
from mnist_jax.training.experiment import make_scale, split_data
from mnist_jax.training.run_dir import read_record

FLAGS = flags.FLAGS
flags.disclaim_key_flags()  # they are the program's own: its --help shows them

_PLATFORMS = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}


def define_machine_flags() -> None:
    """Defines the flags that say where to run and where the data are."""
    flags.DEFINE_string(
        "data_dir",
        None,
        "folder with the data set's four files under their original names; default "
        "$MNIST_JAX_DATA_DIR, else they are downloaded",
    )
    flags.DEFINE_enum(
        "platform", None, list(_PLATFORMS), "where to run; default: what JAX finds"
    )
    flags.DEFINE_enum(
        "compile_cache",
        "on",
        ["on", "off"],
        "whether compiled programs are kept in the user's cache folder",
    )


def define_models_flag(purpose: str) -> None:
    """Defines `--models`, which `chosen_models` reads."""
    help = f"networks to {purpose}, comma-separated"
    flags.DEFINE_list("models", list(MODELS), help)


def chosen_models() -> list[str]:
    """Returns the networks that `--models` names.

    Raises:
        InputError: it names none, or one that there is not.
    """
    if not FLAGS.models or not set(FLAGS.models) <= set(MODELS):
        raise InputError(
            f"--models must be one or more of {', '.join(MODELS)}; got "
            f"{','.join(FLAGS.models) or 'none'}"
        )
    return FLAGS.models


def define_seeds_flag(default: int) -> None:
    """Defines `--seeds`."""
    start = "--seed" if "seed" in FLAGS else "0"
    help = f"runs of each configuration, with seeds from {start} on, trained together"
    flags.DEFINE_integer("seeds", default, help, lower_bound=1)


def chosen_seeds(first: int, count: int) -> range:
    """Returns the seeds that `--seed` and `--seeds` ask for.

    Raises:
        InputError: the last one is too large for a seed.
    """
    seeds = range(first, first + count)
    if seeds[-1] >= 2**32:
        raise InputError(
            f"--seeds={count} from --seed={first} on reaches {seeds[-1]}, and "
            "the largest seed is 4294967295; give fewer, or a smaller first one"
        )
    return seeds


def start_jax() -> None:
    """Chooses the platform, makes a host device per core of a CPU, sets up the cache.

    Raises:
        InputError: JAX finds no such platform.
    """
    # What imports made stays: to look through it in every collection would take a tenth
    # of the time that tracing and lowering take.
    gc.freeze()
    if FLAGS.platform:
        jax.config.update("jax_platforms", _PLATFORMS[FLAGS.platform])
    if "compile_cache" in FLAGS and FLAGS.compile_cache == "on":
        use_compile_cache()
    wanted = FLAGS.cpu_devices if "cpu_devices" in FLAGS else None
    jax.config.update("jax_num_cpu_devices", wanted or available_cores())
    try:
        jax.devices()
    # Without a GPU an assertion of JAX's own fails, which says nothing.
    except (RuntimeError, AssertionError) as error:
        reason = (str(error) or "there is none").splitlines()[0]
        asked = f"--platform={FLAGS.platform}"
        if not FLAGS.platform:
            asked = f"JAX_PLATFORMS={jax.config.values['jax_platforms']}"
        raise InputError(
            f"{asked}: JAX finds no such device ({reason}); install its support "
            "(README, 'GPU and TPU') or leave the setting out"
        ) from error


def load_data(name: str) -> Dataset:
    """Loads a data set as the flags say, and announces one that stands in for MNIST."""
    dataset = load_dataset(name, FLAGS.data_dir)
    if dataset.note:
        print(f"\n*** {dataset.note} ***\n", flush=True)
    return dataset


def load_scale(folder: Path, config: TrainConfig) -> partial[jax.Array]:
    """Returns a run's pixel scaling; loads its data only where that takes statistics.

    Args:
        folder: the run's directory.
        config: the run's.
    """
    if config.pixels != "standardized":
        return partial(scale_pixels, pixels=config.pixels)
    return make_scale(
        config, split_data(config, load_data(read_record(folder)["dataset"]))
    )


def define_profile_flag(place: str) -> None:
    """Defines `--profile`, whose traces go into a folder in another flag's place."""
    help = f"print where the time goes; write a trace into {place}/profile"
    flags.DEFINE_boolean("profile", False, help)


def define_quiet_flag() -> None:
    """Defines `--quiet`."""
    flags.DEFINE_boolean("quiet", False, "print results only, no progress")


def stop_between_parts(message: str) -> Callable[[], None]:
    """Lets the first SIGINT or SIGTERM wait until the program comes to a good place.

    A second one ends it at once.

    Args:
        message: what then becomes of the work so far, and how to go on.

    Returns:
        A function to call at such places: it raises `Stopped` if a signal has come.
    """
    received: list[int] = []

    def remember(number: int, _: Any) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGINT, remember)
    signal.signal(signal.SIGTERM, remember)

    def check() -> None:
        if received:
            raise Stopped(received[0], message)

    return check


def run_program(main: Callable[[], None]) -> None:
    """Parses the flags and runs a program; bad input ends it with one sentence.

    Args:
        main: the program, without arguments.
    """

    def checked(argv: Sequence[str]) -> None:
        logging.set_verbosity(logging.WARNING)  # JAX tells of every backend it misses
        try:
            if len(argv) > 1:
                raise InputError(
                    f"unexpected argument {argv[1]!r}; flags are written --name=value; "
                    "see --help"
                )
            main()
            sys.stdout.flush()
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        except OSError as error:
            # Such as standard output on a full disk. What is left of it goes nowhere,
            # lest the interpreter fails in writing it at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            print(
                f"error: the system refused: {error}; mend that and run again",
                file=sys.stderr,
            )
            sys.exit(1)
        except Stopped as stopped:
            print(f"stopped: {stopped}", file=sys.stderr)
            sys.exit(128 + stopped.number)
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            sys.exit(130)

    app.run(checked)


def existing_folder(path: str, flag: str) -> Path:
    """Returns the folder that a flag names.

    Raises:
        InputError: there is none.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(
            f"--{flag}={path} is no folder; give the --run_dir of a finished run"
        )
    return folder
