"""The absl flags that several programs share, and what is read from them."""

from pathlib import Path

from absl import flags

from mnist_jax.config import MODELS
from mnist_jax.data.datasets import load_dataset
from mnist_jax.data.types import Dataset
from mnist_jax.errors import InputError

FLAGS = flags.FLAGS
flags.disclaim_key_flags()  # they are the program's own: its --help shows them

PLATFORMS = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}


def define_data_dir_flag() -> None:
    """Defines `--data_dir`."""
    flags.DEFINE_string(
        "data_dir",
        None,
        "folder with the data set's four files under their original names; default "
        "$MNIST_JAX_DATA_DIR, else they are downloaded",
    )


def define_run_dir_flag() -> None:
    """Defines `--run_dir` for a program that reads one run."""
    flags.DEFINE_string("run_dir", None, "directory of a finished run", required=True)


def define_machine_flags() -> None:
    """Defines the flags that decide where to run and where the data are."""
    define_data_dir_flag()
    flags.DEFINE_enum(
        "platform", None, list(PLATFORMS), "where to run; default: what JAX finds"
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


def define_profile_flag(folder_flag: str) -> None:
    """Defines `--profile`, whose traces go into the folder of another flag."""
    help = f"print where the time goes; write a trace into {folder_flag}/profile"
    flags.DEFINE_boolean("profile", False, help)


def define_quiet_flag() -> None:
    """Defines `--quiet`."""
    flags.DEFINE_boolean("quiet", False, "print results only, no progress")


def load_data(name: str) -> Dataset:
    """Loads a data set as the flags say, and announces one that stands in for MNIST."""
    dataset = load_dataset(name, FLAGS.data_dir)
    if dataset.note:
        print(f"\n*** {dataset.note} ***\n", flush=True)
    return dataset


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
