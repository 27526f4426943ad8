"""Run directories: what they hold, and loading runs.

A run directory contains `config.json`, `metrics.jsonl` (a line per epoch),
`params.msgpack` and `record.json` of a finished run, and `checkpoints/` if requested. A
run with a record is finished; one with checkpoints but no record is unfinished.
"""

import dataclasses
import functools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from flax import linen as nn

from mnist_jax.config import TrainConfig
from mnist_jax.data.pixels import Preprocess
from mnist_jax.data.types import Dataset, Shapes, class_names
from mnist_jax.errors import InputError
from mnist_jax.models.custom import find_network, network_sha256
from mnist_jax.models.networks import create_model, variable_shapes
from mnist_jax.models.rewrite import without_rewriting
from mnist_jax.records.environment import numerics
from mnist_jax.records.schema import RunKey, RunRecord, read_json
from mnist_jax.training.checkpoints import load_params
from mnist_jax.training.epochs import predict_images
from mnist_jax.training.fit import is_over
from mnist_jax.training.safetensors_file import load_safetensors

CONFIG, METRICS, RECORD, PARAMS, EXPORTED_PARAMS, DETAILS, DATA_DIR = FILES = (
    "config.json",
    "metrics.jsonl",
    "record.json",
    "params.msgpack",
    "model.safetensors",  # instead of it in a folder written by `experiments.export`
    "details.json",  # data for plots, computed from the parameters
    "data_dir.txt",  # the folder of the dataset's files, if the user named it
)


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedRun:
    """A finished run: its config, its record and its trained variables."""

    config: TrainConfig
    record: RunRecord = dataclasses.field(repr=False)
    variables: Any = dataclasses.field(repr=False)  # as of `init_model`
    preprocess: Preprocess = dataclasses.field(repr=False)

    @functools.cached_property
    def model(self) -> nn.Module:
        """The run's network, as its author wrote it."""
        return without_rewriting(create_model(self.config, self.shapes))

    @property
    def shapes(self) -> Shapes:
        """The shape of the run's images, and the number of its classes."""
        return Shapes(self.record.image_shape, self.record.classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, or their numbers, in the order of the labels."""
        record = self.record
        return record.class_names or class_names(record.dataset, record.classes)

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
    """Loads a finished run from its directory, or from one exported as safetensors."""
    folder = Path(folder).expanduser()
    config = find_network(read_json(TrainConfig, folder / CONFIG), folder)
    record = read_json(RunRecord, folder / RECORD)
    if (current := network_sha256(config)) != record.source_sha256:
        raise InputError(
            f"the source of {config.model} has changed since {folder} was trained "
            f"(sha256 {record.source_sha256}, now {current}); restore it or train again"
        )
    preprocess = Preprocess(config.pixels)
    if config.pixels == "standardized":
        assert record.pixel_mean is not None and record.pixel_std is not None
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
    config, source = config.for_dataset(dataset.name), network_sha256(config)
    keys = {}
    for seed in seeds:
        start = start_from and read_json(RunRecord, start_from[seed] / RECORD)
        start_sha256 = start.params_sha256 if start else None
        keys[seed] = RunKey(
            dataclasses.replace(config, seed=seed),
            dataset.checksum,
            dataset.classes,
            source,
            start_sha256,
            numerics(),
        )
    return keys


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
    record, exported = read_json(RunRecord, folder / RECORD), folder / EXPORTED_PARAMS
    if exported.exists() and not (folder / PARAMS).exists():
        return load_safetensors(exported, like, record.params_sha256)
    return load_params(folder / PARAMS, like, record.params_sha256)


def is_finished(folder: Path, key: RunKey) -> bool:
    """Returns whether a folder contains the finished run of a key.

    It is resumed if the key has more epochs or a larger patience; another difference
    raises InputError.
    """
    if not (folder / RECORD).exists():  # its checkpoints have keys of their own
        return False
    record = read_json(RunRecord, folder / RECORD)
    if different := key.differences(record.key):
        raise InputError(
            f"--resume: {folder} holds a different run: {'; '.join(different)}; give "
            "its flags and data, or another --run_dir"
        )
    return is_over(key.config, record.epochs)
