"""The absl flags shared by several programs, and helpers that read them."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from mnist_jax.cli.parsing import PRESETS, ListParser, PathParser
from mnist_jax.config import DATASETS, MODELS, PRECISIONS, TrainConfig
from mnist_jax.data.datasets import load_dataset
from mnist_jax.data.splits import split_dataset
from mnist_jax.data.types import Split
from mnist_jax.errors import InputError
from mnist_jax.training import distributed
from mnist_jax.training.jax_setup import PLATFORMS
from mnist_jax.training.run_dir import TrainedRun, read_data_dir

FLAGS = flags.FLAGS
flags.disclaim_key_flags()  # so that --help of the program lists them
define_path_flag = functools.partial(flags.DEFINE, PathParser())
define_paths_flag = functools.partial(  # which may be repeated
    flags.DEFINE_multi, PathParser(), flags.ArgumentSerializer()
)


def define_preset_flag() -> None:
    """Defines `--preset`."""
    names = sorted(path.stem for path in PRESETS.glob("*.cfg"))
    help = "published system; sets the flags of its file, which other flags override"
    flags.DEFINE_enum("preset", None, names, help)


def define_data_dir_flag() -> None:
    """Defines `--data_dir`."""
    define_path_flag(
        "data_dir",
        None,
        "folder with the four files of the dataset, or for --dataset=idx also an .npz "
        "file; default: $MNIST_JAX_DATA_DIR, otherwise they are downloaded",
    )


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


def define_training_flags(seeds: int = 1) -> None:
    """Defines the flags of the machine, `--seeds` and `--quiet`."""
    define_machine_flags()
    flags.DEFINE_integer("seeds", seeds, "number of seeds, trained together", 1)
    flags.DEFINE_boolean("quiet", False, "print results only, no progress")


def define_run_flags() -> None:
    """Defines the flags of the machine, and `--run_dir` of a finished run."""
    define_machine_flags()
    define_path_flag("run_dir", None, "run directory of a finished run", required=True)


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


def define_list_flag(
    name: str, default: Sequence[Any], help: str, parse_item: Callable[[Any], Any]
) -> None:
    """Defines a flag for comma-separated values, at least one if there are defaults."""
    parser = ListParser(parse_item, may_be_empty=not default)
    to_text = flags.CsvListSerializer(",")
    flags.DEFINE(parser, name, default, f"{help}, comma-separated", serializer=to_text)


def define_models_flag(purpose: str, default: Sequence[str] = MODELS) -> None:
    """Defines `--models`."""
    help = f"networks to {purpose}"
    define_list_flag(
        "models", default, help, lambda name: TrainConfig(model=name).model
    )


def define_precisions_flag() -> None:
    """Defines `--precisions`."""
    help = f"one or more of {', '.join(PRECISIONS)}"
    parse_item = flags.EnumParser(PRECISIONS).parse
    define_list_flag("precisions", PRECISIONS[:1], help, parse_item)


def define_targets_flag() -> None:
    """Defines `--targets`; check them with `check_targets`."""
    help = "validation accuracies whose training seconds are added to the table"
    define_list_flag("targets", (), help, float)


def load_test_set(folder: Path, run: TrainedRun) -> Split:
    """Loads the test set of a finished run, by default from where it was then."""
    record = run.record
    name = record.dataset if record.dataset in DATASETS else "idx"  # made in Python
    data_dir = FLAGS.data_dir
    if not data_dir and (before := read_data_dir(folder)) and Path(before).exists():
        data_dir = before
    dataset = load_dataset(name, data_dir)
    if dataset.checksum != record.checksum:
        raise InputError(
            f"the run in {folder} was trained on data with the sha256 "
            f"{record.checksum}, but those in {dataset.data_dir or name} have "
            f"{dataset.checksum}; give the folder of the run's data by --data_dir"
        )
    return split_dataset(dataset, run.config).test
