"""Run directories, folders of results that hold many, and loading runs.

A run directory contains `config.json`, `metrics.jsonl` (a line per epoch),
`params.msgpack` and `record.json` of a finished run, and `checkpoints/` if requested. A
run with a record is finished; one with checkpoints but no record is unfinished. A
results folder has its run directories in `runs/`, and exports of their records.
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from mnist_jax.config import TrainConfig
from mnist_jax.data.pixels import Preprocess
from mnist_jax.data.types import Dataset, Shapes
from mnist_jax.errors import InputError
from mnist_jax.models.custom import find_network, network_sha256
from mnist_jax.models.networks import create_model, variable_shapes
from mnist_jax.records.environment import current_environment, numerics
from mnist_jax.records.files import hold_lock, write_file
from mnist_jax.records.schema import RunKey, RunRecord, json_line, read_json
from mnist_jax.training.checkpoints import load_params
from mnist_jax.training.epochs import predict_images

CONFIG, METRICS, RECORD, PARAMS, DETAILS, DATA_DIR = FILES = (
    "config.json",
    "metrics.jsonl",
    "record.json",
    "params.msgpack",
    "details.json",  # data for plots, computed from the parameters
    "data_dir.txt",  # the folder of the dataset's files, if the user named it
)
RUNS = "runs"  # in a results folder
LOCK = ".lock"  # in a run directory, and in a results folder


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedRun:
    """A finished run: its config, its record and its trained variables."""

    config: TrainConfig
    record: RunRecord = dataclasses.field(repr=False)
    variables: Any = dataclasses.field(repr=False)  # as of `init_model`
    preprocess: Preprocess = dataclasses.field(repr=False)

    @property
    def shapes(self) -> Shapes:
        """The shape of the run's images, and the number of its classes."""
        return Shapes(self.record.image_shape, self.record.classes)

    def in_float32(self) -> "TrainedRun":
        """Returns the run with a network that computes in float32, as exports do."""
        config = dataclasses.replace(self.config, precision="float32")
        return dataclasses.replace(self, config=config)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Returns class probabilities `[N,classes] float32`.

        Args:
            images: `[N,H,W]` or `[N,H,W,1] uint8`, pixels 0..255 as in the dataset.
        """
        images, (height, width) = np.asarray(images), self.shapes.image
        if images.shape[1:] == (height, width, 1):
            images = images[..., 0]
        if images.shape[1:] != self.shapes.image or images.dtype != np.uint8:
            raise InputError(
                f"predict() takes images [N,{height},{width}] uint8, not scaled; got "
                f"{list(images.shape)} {images.dtype}"
            )
        model = create_model(self.config, self.shapes)
        return predict_images(model, self.preprocess, self.variables, images)


def load_run(folder: str | os.PathLike[str]) -> TrainedRun:
    """Loads a finished run from its directory."""
    folder = Path(folder).expanduser()
    config = find_network(read_json(TrainConfig, folder / CONFIG), folder)
    record = read_json(RunRecord, folder / RECORD)
    if (current := network_sha256(config)) != record.source_sha256:
        raise InputError(
            f"the source of {config.model} has changed since {folder} was trained "
            f"(sha256 {record.source_sha256}, now {current}); restore it or train again"
        )
    preprocess = Preprocess(config.pixels, record.pixel_mean, record.pixel_std)
    model = create_model(config, Shapes(record.image_shape, record.classes))
    variables = load_variables(folder, variable_shapes(model, record.image_shape))
    return TrainedRun(config, record, jax.device_put(variables), preprocess)


def run_keys(
    config: TrainConfig,
    dataset: Dataset,
    seeds: Iterable[int],
    start_from: Mapping[int, Path] | None = None,
) -> dict[int, RunKey]:
    """Returns the key of the run of each seed, before it is trained.

    `start_from` has the finished run whose parameters each seed starts from.
    """
    starts = {
        seed: read_json(RunRecord, folder / RECORD).params_sha256
        for seed, folder in (start_from or {}).items()
    }
    source, config = network_sha256(config), config.for_dataset(dataset.name)
    return {
        seed: RunKey(
            dataclasses.replace(config, seed=seed),
            dataset.checksum,
            dataset.classes,
            source,
            starts.get(seed),
            numerics(),
        )
        for seed in seeds
    }


def run_folders(
    out: Path,
    config: TrainConfig,
    dataset: Dataset,
    seeds: Sequence[int],
    system: str | None = None,
    anywhere: bool = False,
) -> dict[int, Path]:
    """Returns the run directory of each seed of a config in a results folder.

    The name of their parent begins with that of the system or the config and ends in a
    digest of the runs' key, and unless they may run `anywhere`, of the machine, the
    versions and `XLA_FLAGS`. The commit is not included: to measure changed code, use
    another folder.
    """
    [key] = run_keys(config, dataset, [0]).values()
    values = [key] if anywhere else [system, key, *current_environment().compared()]
    root = out / RUNS / f"{system or config.name}-{digest(*values)}"
    return {seed: root / f"seed{seed}" for seed in seeds}


def digest(*values: Any) -> str:
    """Returns the end of the name of a folder of runs, by what they have in common."""
    return hashlib.sha256(repr(values).encode()).hexdigest()[:12]


def read_record(folder: Path) -> RunRecord | None:
    """Returns the record of a run, or None if it is unfinished or damaged."""
    if (folder / RECORD).exists():
        try:
            return read_json(RunRecord, folder / RECORD)
        except InputError as error:
            logging.warning("%s", error)
    return None


def read_data_dir(folder: Path) -> str | None:
    """Returns where a run's dataset was read, if the user said so."""
    path = folder / DATA_DIR
    return path.read_text() if path.exists() else None


def load_variables(folder: Path, like: Any) -> Any:
    """Loads the trained variables of a finished run.

    They must match the run's record and fit `like`, the variables of a network or their
    shapes.
    """
    sha256 = read_json(RunRecord, folder / RECORD).params_sha256
    return load_params(folder / PARAMS, like, sha256)


def find_runs(out: Path) -> dict[Path, RunRecord]:
    """Returns the finished runs in a results folder by run directory, oldest first.

    An unreadable record is skipped with a warning.
    """
    folders = [path.parent for path in sorted((out / RUNS).glob(f"*/*/{RECORD}"))]
    runs = [(folder, run) for folder in folders if (run := read_record(folder))]
    runs.sort(key=lambda pair: (pair[1].environment.date, pair[1].config.seed))
    return dict(runs)


def export_runs(out: Path, name: str) -> list[RunRecord]:
    """Writes the records of `find_runs` to a JSON-lines file; returns them."""
    with hold_lock(out / LOCK):
        records = list(find_runs(out).values())
        write_file(out / name, "".join(f"{json_line(run)}\n" for run in records))
    return records
