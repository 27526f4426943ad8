"""A run directory: the one home of a run, written, resumed and loaded.

It holds `config.json`, `metrics.jsonl` (a line per epoch), `params.msgpack` and
`record.json` once the run has ended, and `checkpoints/` where they were asked for. A
run is finished if there is a record, unfinished if there are checkpoints and no record.
"""

import dataclasses
import functools
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from mnist_jax.config import TrainConfig, as_text
from mnist_jax.data.datasets import load_dataset
from mnist_jax.data.pixels import Preprocess, make_preprocess
from mnist_jax.data.splits import split_dataset
from mnist_jax.errors import InputError
from mnist_jax.models.networks import create_model, init_params
from mnist_jax.records.environment import code_digest
from mnist_jax.records.files import make_folder, write_file
from mnist_jax.records.schema import (
    EpochRecord,
    RunRecord,
    append_jsonl,
    json_line,
    read_json,
    write_json,
)
from mnist_jax.training.checkpoints import (
    KEEP,
    Checkpoint,
    Origin,
    begin_checkpoints,
    has_checkpoints,
    load_params,
    remove_checkpoints,
    save_checkpoint,
    save_params,
)
from mnist_jax.training.epochs import make_predict
from mnist_jax.training.experiment import Experiment
from mnist_jax.training.fit import SILENT, Callbacks, fit

CONFIG, METRICS, RECORD, PARAMS, DETAILS = FILES = (
    "config.json",
    "metrics.jsonl",
    "record.json",
    "params.msgpack",
    "details.json",  # what pictures show, derived from the parameters
)
_EVENTS = "events.out.tfevents.*"  # of TensorBoard, which would draw both runs as one
_PREDICT_CHUNK = 1_000  # images at a time: of each, a CNN's layers keep about 100 kB


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A finished run: its config, its record and its trained parameters."""

    config: TrainConfig
    record: RunRecord
    params: Any
    preprocess: Preprocess

    @functools.cached_property
    def model(self) -> nn.Module:
        """The run's network."""
        return create_model(self.config)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Returns the probabilities `[N,10] float32` of images `[N,28,28] uint8`."""
        predict = make_predict(self.model, self.preprocess)
        starts = range(0, len(images), _PREDICT_CHUNK)
        chunks = [images[start : start + _PREDICT_CHUNK] for start in starts]
        return np.concatenate([np.asarray(predict(self.params, c)) for c in chunks])


def load_run(
    folder: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None = None
) -> TrainedRun:
    """Loads a finished run from its directory.

    Args:
        folder: the run directory.
        data_dir: as for `load_dataset`; only used for a run with standardized pixels
            whose record is of version 1, which lacks their mean and deviation.

    Raises:
        InputError: a file is missing, damaged or of another version.
    """
    folder = Path(folder)
    config = read_json(TrainConfig, folder / CONFIG)
    record = read_json(RunRecord, folder / RECORD)
    preprocess = Preprocess(config.pixels)
    if record.pixel_mean is not None and record.pixel_std is not None:
        preprocess = Preprocess(config.pixels, record.pixel_mean, record.pixel_std)
    elif config.pixels == "standardized":
        dataset = load_dataset(record.dataset, data_dir)
        preprocess = make_preprocess(config, split_dataset(dataset, config).train)
    params = _load_params(folder, create_model(config), record)
    return TrainedRun(config, record, jax.device_put(params), preprocess)


def load_run_params(folder: Path, model: nn.Module) -> Any:
    """Returns the trained parameters of a finished run, for a network.

    Raises:
        InputError: there are none, they are not those of the run's record, or do not
            fit the network: the leaf is named.
    """
    return _load_params(folder, model, read_json(RunRecord, folder / RECORD))


def _load_params(folder: Path, model: nn.Module, record: RunRecord) -> Any:
    like = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    return load_params(folder / PARAMS, like, record.params_sha256)


def check_run_dir(folder: Path, overwrite: bool) -> None:
    """Makes sure that a run may be written into a folder, before any work is done.

    Raises:
        InputError: it holds a run and may not be overwritten, or cannot be made.
    """
    held = [name for name in FILES if (folder / name).exists()]
    if held and not overwrite:
        raise InputError(
            f"--run_dir={folder} already holds a run ({', '.join(held)}); give another "
            "directory, or --overwrite to replace that run"
        )
    make_folder(folder)


def is_finished(folder: Path, config: TrainConfig) -> bool:
    """Returns whether a directory holds the finished run of a config.

    More epochs than before may be asked for: the run is then to be resumed.

    Raises:
        InputError: it holds a run of another config, whose fields are named, or one
            that ended and left no checkpoint to prolong it from.
    """
    if not (folder / CONFIG).exists():
        return False
    before = read_json(TrainConfig, folder / CONFIG)
    different = [
        f"--{field.name} was {as_text(old)}, is {as_text(new)}"
        for field in dataclasses.fields(config)
        if (new := getattr(config, field.name)) != (old := getattr(before, field.name))
        and not (field.name == "epochs" and new > old)
    ]
    if different:
        raise InputError(
            f"--resume: the run in {folder} has another config: "
            f"{'; '.join(different)}; give its flags, or another --run_dir"
        )
    if not (folder / RECORD).exists():
        return False
    # A run that was prolonged and then stopped still has its earlier record.
    ended = read_json(RunRecord, folder / RECORD).config
    if ended != config and not has_checkpoints(folder):
        raise InputError(
            f"--resume: the run in {folder} ended after {ended.epochs} epochs and left "
            "no checkpoint to prolong it from; give another --run_dir, or --overwrite "
            "to replace that run"
        )
    return ended == config


def fit_into(
    experiment: Experiment,
    folders: Mapping[int, Path],
    callbacks: Callbacks = SILENT,
    start_params: Sequence[Any] | None = None,
    *,
    checkpoint_every: int = 0,
    keep: int = KEEP,
    resume: Checkpoint | None = None,
    recorded: Collection[int] = (),
    system: str | None = None,
) -> list[RunRecord]:
    """Trains seeds together and writes each run into its own directory.

    An earlier run there is removed first: ask `check_run_dir` before.

    Args:
        experiment: what `prepare` returned.
        folders: the run directory of each seed.
        callbacks: as for `fit`.
        start_params: as for `fit`.
        checkpoint_every: epochs from one checkpoint to the next; 0 writes none.
        keep: how many checkpoints stay.
        resume: a checkpoint of these runs.
        recorded: seeds that are finished and only trained along, since they were
            trained together before: all that is written of them is checkpoints.
        system: the published system that the runs are of, if any.

    Returns:
        The records of all seeds but those recorded before.
    """
    own = {seed: folder for seed, folder in folders.items() if seed not in recorded}
    for index, (seed, folder) in enumerate(folders.items()):
        if seed not in own:
            continue
        make_folder(folder)
        if resume is None:
            for path in (*(folder / name for name in FILES), *folder.glob(_EVENTS)):
                path.unlink(missing_ok=True)
            remove_checkpoints(folder)
        else:
            # Epochs after the checkpoint are run again.
            lines = map(json_line, resume.histories[index])
            write_file(folder / METRICS, "".join(f"{line}\n" for line in lines))
        config = dataclasses.replace(experiment.config, seed=seed)
        write_json(folder / CONFIG, config)
    if checkpoint_every:
        begin_checkpoints(folders)
    origin = Origin(experiment.dataset.checksum, code_digest())

    def save(checkpoint: Checkpoint) -> None:
        last = checkpoint.epoch == experiment.config.epochs
        if checkpoint_every and (last or checkpoint.epoch % checkpoint_every == 0):
            save_checkpoint(checkpoint, folders, keep, origin)

    def write_and_report(epochs: Sequence[EpochRecord]) -> None:
        for (seed, folder), epoch in zip(folders.items(), epochs, strict=True):
            if seed in own:
                append_jsonl(folder / METRICS, epoch)
        callbacks.on_epoch(epochs)

    runs = fit(
        experiment,
        list(folders),
        callbacks._replace(on_epoch=write_and_report),
        start_params,
        on_checkpoint=save,
        resume=resume,
    )
    records = []
    for (seed, folder), (record, params) in zip(folders.items(), runs, strict=True):
        if seed in own:
            record = dataclasses.replace(record, system=system)
            save_params(folder / PARAMS, params)
            write_json(folder / RECORD, record)
            records.append(record)
    return records
