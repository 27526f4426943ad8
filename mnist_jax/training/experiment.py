"""From a config and a data set to compiled programs with their data on the devices."""

import dataclasses

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from mnist_jax.config import TrainConfig
from mnist_jax.data.batches import epoch_indices
from mnist_jax.data.pixels import Preprocess, make_preprocess
from mnist_jax.data.splits import split_dataset
from mnist_jax.data.types import Dataset, Split
from mnist_jax.errors import InputError
from mnist_jax.models.networks import create_model
from mnist_jax.training.compile_cache import CompileClock
from mnist_jax.training.epochs import Programs, make_programs
from mnist_jax.training.mesh import choose_mesh, eval_indices, replicate
from mnist_jax.training.optimizers import create_optimizer


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A config's data on the devices and its compiled programs, for so many seeds."""

    config: TrainConfig
    seeds: int  # trained together, in one program
    dataset: Dataset
    model: nn.Module
    preprocess: Preprocess
    programs: Programs
    train: Split
    held_out: Split  # validation images, then test images; once if they are the same
    validation: jax.Array | None  # indices of the validation images in `held_out`
    test: jax.Array
    compile_seconds: float
    compile_cached: bool


def prepare(
    config: TrainConfig, dataset: Dataset, seeds: int = 1, mesh: Mesh | None = None
) -> Experiment:
    """Splits the data, puts it on the devices and compiles what runs need.

    Args:
        config: what to run; its seed plays no part yet.
        dataset: as `load_dataset` returned it.
        seeds: runs that `fit` is to train together.
        mesh: devices that share them (default: `choose_mesh`).

    Raises:
        InputError: the config asks for more images than there are.
    """
    dataset = split_dataset(dataset, config)
    size = len(dataset.train.labels)
    if config.batch_size > size:
        raise InputError(
            f"--batch_size must be at most the {size} training images; got "
            f"{config.batch_size}; give a smaller one"
        )
    mesh = mesh or choose_mesh(config, seeds)
    model, preprocess = create_model(config), make_preprocess(config, dataset.train)
    orders = np.stack([epoch_indices(0, 0, size, config.batch_size)] * seeds)
    tx = create_optimizer(config, orders.shape[1] * config.epochs)
    train = replicate(dataset.train, mesh)
    held_out, validation, test = _hold_out(dataset, mesh)
    with CompileClock() as clock:
        programs = make_programs(model, tx, preprocess, mesh).compile(
            orders, train, held_out, test
        )
    return Experiment(
        config=config,
        seeds=seeds,
        dataset=dataset,
        model=model,
        preprocess=preprocess,
        programs=programs,
        train=train,
        held_out=held_out,
        validation=validation,
        test=test,
        compile_seconds=clock.seconds,
        compile_cached=clock.cached,
    )


def _hold_out(
    dataset: Dataset, mesh: Mesh
) -> tuple[Split, jax.Array | None, jax.Array]:
    """Puts validation and test images into one split, so that one program serves both.

    Returns:
        The split on the devices and the indices of validation and test images in it.
    """
    test, validation = dataset.test, dataset.validation
    size = len(test.labels)
    if validation is None or validation is test:
        indices = eval_indices(range(size), mesh)
        return replicate(test, mesh), indices if validation else None, indices
    start = len(validation.labels)
    both = Split(*map(np.concatenate, zip(validation, test, strict=True)))
    rows = len(eval_indices(range(max(start, size)), mesh))
    ranges = range(start), range(start, start + size)
    return replicate(both, mesh), *(eval_indices(r, mesh, rows) for r in ranges)
