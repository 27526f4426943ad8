"""The absl flags shared by several programs, and helpers that read them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from mnist_jax.config import DATASETS, MODELS, PRECISIONS
from mnist_jax.data.datasets import load_dataset
from mnist_jax.data.types import MNIST, Dataset
from mnist_jax.errors import InputError
from mnist_jax.records.schema import RunRecord
from mnist_jax.training import distributed
from mnist_jax.training.jax_setup import PLATFORMS
from mnist_jax.training.run_dir import read_data_dir

FLAGS = flags.FLAGS
flags.disclaim_key_flags()  # so that --help of the program lists them


class _PathParser(flags.ArgumentParser):
    """Expands `~` in a path, which shells do not in `--name=~/file`."""

    def parse(self, argument: str) -> str:
        if not argument:  # as of an unset shell variable; it would become "."
            raise ValueError("a path; give one, or leave the flag out")
        try:
            return str(Path(argument).expanduser())
        except RuntimeError as error:  # that home is not known
            raise ValueError(str(error)) from error


class _PresetParser(flags.EnumParser):
    """Returns the flag file of a preset."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        super().__init__(sorted(path.stem for path in folder.glob("*.cfg")))

    def parse(self, argument: str) -> str:
        return str(self.folder / f"{super().parse(argument)}.cfg")


def define_path_flag(
    name: str,
    default: str | None,
    help: str,
    *,
    required: bool = False,
    repeated: bool = False,
) -> None:
    """Defines a flag for a file or folder, or for a list of them if `repeated`."""
    options: dict[str, Any] = {"required": required}
    if repeated:
        to_text: flags.ArgumentSerializer[str] = flags.ArgumentSerializer()
        flags.DEFINE_multi(_PathParser(), to_text, name, default, help, **options)
    else:
        flags.DEFINE(_PathParser(), name, default, help, **options)


def define_preset_flag(
    folder: Path,
    name: str = "preset",
    help: str = "published system; sets the flags of its file, which other flags "
    "override",
) -> None:
    """Defines a flag that names a file of flags in a folder; its value is the path."""
    parser = _PresetParser(folder)
    flags.DEFINE(parser, name, None, f"{help}: {', '.join(parser.enum_values)}")


def define_data_dir_flag() -> None:
    """Defines `--data_dir`."""
    define_path_flag(
        "data_dir",
        None,
        "folder with the four files of the dataset, or for --dataset=idx also an .npz "
        "file; default: $MNIST_JAX_DATA_DIR, "
        "otherwise they are downloaded",
    )


def define_run_dir_flag() -> None:
    """Defines `--run_dir` for programs that read one run."""
    define_path_flag("run_dir", None, "run directory of a finished run", required=True)


def define_machine_flags() -> None:
    """Defines the flags for the data folder, platform and compilation cache."""
    define_data_dir_flag()
    flags.DEFINE_enum(
        "platform", None, list(PLATFORMS), "platform; default: what JAX finds"
    )
    flags.DEFINE_enum(
        "compile_cache",
        "on",
        ["on", "off"],
        "whether to keep compiled programs in the user's cache folder",
    )


def define_cluster_flags() -> None:
    """Defines the flags of a job of several processes, for `start_jax`."""
    flags.DEFINE_string(
        "coordinator",
        None,
        "host:port of process 0 of a job of several processes, which train one run",
    )
    flags.DEFINE_integer("num_processes", None, "processes of the job", lower_bound=1)
    flags.DEFINE_integer(
        "process_id", None, "index of this process in the job", lower_bound=0
    )
    flags.DEFINE_enum(
        "cluster",
        "none",
        ["none", "auto"],
        "auto: take the job from Slurm, Open MPI, GKE or a TPU pod",
    )
    flags.DEFINE_integer(
        "cluster_timeout",
        distributed.TIMEOUT,
        "seconds until all processes of the job must have started",
        lower_bound=1,
        upper_bound=86_400,
    )


def define_models_flag(purpose: str, default: Sequence[str] = MODELS) -> None:
    """Defines `--models`; read it with `chosen_models`."""
    help = f"networks to {purpose}, comma-separated"
    flags.DEFINE_list("models", list(default), help)


def chosen_models(custom: bool = False) -> list[str]:
    """Returns the models given by `--models`.

    Args:
        custom: whether custom networks are allowed.

    Raises:
        InputError: none is given, or one is unknown.
    """
    allowed = ", or a Flax module such as path/to/file.py:Class" if custom else ""
    known = [m in MODELS or (custom and ":" in m) for m in FLAGS.models]
    if not known or not all(known):
        raise InputError(
            f"--models must be one or more of {', '.join(MODELS)}{allowed}; got "
            f"{','.join(FLAGS.models) or 'none'}"
        )
    return FLAGS.models


def chosen_numbers(flag: str, allowed: str, largest: float = math.inf) -> list[int]:
    """Returns the numbers given by a comma-separated flag.

    Args:
        flag: its name.
        allowed: the allowed values, for the message.
        largest: the largest of them; the smallest is 1.

    Raises:
        InputError: none is given, or one is not allowed.
    """
    words: list[str] = FLAGS[flag].value or []
    for word in words or ["none"]:
        if not (word.isascii() and word.isdigit() and 1 <= int(word) <= largest):
            raise InputError(f"--{flag} must be {allowed}; got {word}")
    return list(map(int, words))


def define_precisions_flag() -> None:
    """Defines `--precisions`; read it with `chosen_precisions`."""
    help = f"one or more of {', '.join(PRECISIONS)}, comma-separated"
    flags.DEFINE_list("precisions", list(PRECISIONS[:1]), help)


def chosen_precisions() -> list[str]:
    """Returns the precisions given by `--precisions`."""
    if not FLAGS.precisions or not set(FLAGS.precisions) <= set(PRECISIONS):
        raise InputError(
            f"--precisions must be one or more of {', '.join(PRECISIONS)}; got "
            f"{','.join(FLAGS.precisions) or 'none'}"
        )
    return FLAGS.precisions


def define_seeds_flag(default: int) -> None:
    """Defines `--seeds`."""
    start = "--seed" if "seed" in FLAGS else "0"
    help = f"number of seeds, counted from {start}, trained together"
    flags.DEFINE_integer("seeds", default, help, lower_bound=1)


def chosen_seeds(first: int, count: int) -> range:
    """Returns the seeds given by `--seed` and `--seeds`.

    Raises:
        InputError: the last seed is too large.
    """
    seeds = range(first, first + count)
    if seeds[-1] >= 2**32:
        raise InputError(
            f"--seeds={count} counted from --seed={first} reaches {seeds[-1]}, but the "
            "largest seed is 4294967295; use fewer seeds or a smaller --seed"
        )
    return seeds


def define_targets_flag() -> None:
    """Defines `--targets`; read it with `check_targets`."""
    help = (
        "validation accuracies, comma-separated; adds the training seconds until each "
        "is reached to the table"
    )
    flags.DEFINE_list("targets", [], help)


def define_profile_flag(folder_flag: str) -> None:
    """Defines `--profile`; the trace is written to the folder of another flag."""
    help = f"print where the time goes and write a trace to {folder_flag}/profile"
    flags.DEFINE_boolean("profile", False, help)


def define_quiet_flag() -> None:
    """Defines `--quiet`."""
    flags.DEFINE_boolean("quiet", False, "print results only, no progress")


def load_data(
    name: str, any_shape: bool = True, data_dir: str | None = None
) -> Dataset:
    """Loads a dataset; prints its note, such as that it is a substitute for MNIST.

    Args:
        name: as for `load_dataset`.
        any_shape: whether the program works with other images than 28x28 in 10 classes.
        data_dir: as for `load_dataset`, unless `--data_dir` is given.

    Raises:
        InputError: as `load_dataset`, or the images have another shape than allowed.
    """
    dataset = load_dataset(name, FLAGS.data_dir or data_dir)
    if not any_shape and dataset.shapes != MNIST:
        (height, width), classes = dataset.shapes
        raise InputError(
            f"--dataset={name} has images of {height}x{width} in {classes} classes, "
            "but this program is for 28x28 in 10 classes; give such a dataset, or use "
            "experiments.train or benchmarks.compare"
        )
    if dataset.note:
        print(f"\n*** {dataset.note} ***\n", flush=True)
    return dataset


def load_data_of(folder: Path, record: RunRecord) -> Dataset:
    """Loads the dataset of a finished run, by default from where it was read then.

    Raises:
        InputError: as `load_data`, or they are other data.
    """
    name = record.dataset if record.dataset in DATASETS else "idx"  # made in Python
    data_dir = read_data_dir(folder)
    if data_dir and name != "idx" and not Path(data_dir).is_dir():
        data_dir = None  # the published sets are recognized wherever they are
    if name == "idx" and not (FLAGS.data_dir or data_dir):
        raise InputError(
            f"the run in {folder} was trained on arrays given in Python; write them to "
            "an .npz file, and give it by --data_dir"
        )
    dataset = load_data(name, data_dir=data_dir)
    if dataset.checksum != record.checksum:
        raise InputError(
            f"the run in {folder} was trained on data with the sha256 "
            f"{record.checksum}, but those in {dataset.data_dir or name} have "
            f"{dataset.checksum}; give the folder of the run's data by --data_dir"
        )
    return dataset
