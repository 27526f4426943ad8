"""Prepares training: compiled programs and data on the devices, from a config."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import linen as nn
from jax.sharding import Mesh

from mnist_jax.config import MODELS, TrainConfig
from mnist_jax.data.augment import Augmentation
from mnist_jax.data.batches import epoch_indices
from mnist_jax.data.pixels import Preprocess, make_preprocess
from mnist_jax.data.splits import split_dataset
from mnist_jax.data.types import Dataset, Split
from mnist_jax.errors import InputError
from mnist_jax.models.custom import network_sha256
from mnist_jax.models.networks import create_model
from mnist_jax.training import distributed
from mnist_jax.training.epochs import (
    QUICK,
    Programs,
    compute_logits,
    jit,
    make_programs,
)
from mnist_jax.training.jax_setup import CompileClock
from mnist_jax.training.mesh import choose_mesh, eval_indices, replicate, seed_keys
from mnist_jax.training.optimizers import create_optimizer

# JAX's caches hold 5 to 10 MB for each config, and are cleared after this many. That
# costs half a second, since small operations are then compiled again.
_KEPT_PROGRAMS = 8
_prepared = itertools.count(1)
_warn_once = functools.cache(logging.warning)  # for all the runs that share its cause


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The compiled programs of a config and its data on the devices."""

    config: TrainConfig
    seeds: int  # number of seeds trained together, in one program
    dataset: Dataset
    model: nn.Module
    source_sha256: str | None  # of a custom network, when its model was created
    preprocess: Preprocess
    programs: Programs
    train: Split
    held_out: Split  # validation, then test images
    validation: jax.Array | None  # indices of the validation images in `held_out`
    test: jax.Array
    compile_seconds: float
    compile_cached: bool


def split_for_training(dataset: Dataset, config: TrainConfig) -> Dataset:
    """Splits a dataset; raises InputError if the config asks for too many images."""
    dataset = split_dataset(dataset, config)
    size = len(dataset.train.labels)
    if config.batch_size > size:
        raise InputError(
            f"--batch_size must be at most the {size} training images; got "
            f"{config.batch_size}; give a smaller batch size"
        )
    counts = np.bincount(dataset.train.labels, minlength=dataset.classes)
    if unseen := (counts == 0).nonzero()[0].tolist():
        advice = "shuffle the images, or train on more of them"
        _warn_once(f"no training image has the labels {unseen}; {advice}")
    return dataset


def prepare(
    config: TrainConfig, dataset: Dataset, seeds: int = 1, mesh: Mesh | None = None
) -> Experiment:
    """Splits the data, puts it on the devices and compiles the programs of a run.

    `fit` will train `seeds` seeds together; that of the config is not used. The default
    mesh is that of `choose_mesh`.
    """
    if next(_prepared) % _KEPT_PROGRAMS == 0:
        jax.clear_caches()
    config = config.for_dataset(dataset.name)
    dataset = split_for_training(dataset, config)
    size = len(dataset.train.labels)
    mesh = mesh or choose_mesh(config, seeds, dataset.shapes)
    source_sha256 = network_sha256(config)
    model = create_model(config, dataset.shapes)
    preprocess = make_preprocess(config, dataset.train)
    orders = np.stack([epoch_indices(0, 0, size, config.batch_size)] * seeds)
    tx = create_optimizer(config, orders.shape[1] * config.epochs)
    train = replicate(dataset.train, mesh)
    held_out, validation, test = _hold_out(dataset, mesh)
    with CompileClock() as clock:
        programs = make_programs(
            model,
            tx,
            preprocess,
            mesh,
            dataset.shapes.image,
            augment=Augmentation(config.augment),
            label_smoothing=config.label_smoothing,
            classes=dataset.classes,
        ).compile(orders, train, held_out, test)
    if config.model not in MODELS:
        states = programs.init(seed_keys(range(seeds)))
        variables = jax.tree.map(lambda leaf: leaf[0], states.variables)
        images = dataset.train.images[:16]
        if fault := find_batch_dependence(model, preprocess, variables, images):
            raise InputError(f"--model={config.model}: {fault}")
    distributed.yield_polling_threads()
    return Experiment(
        config=config,
        seeds=seeds,
        dataset=dataset,
        model=model,
        source_sha256=source_sha256,
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
    """Joins validation and test images, so that one program evaluates both.

    Returns:
        The joint split on the devices, and the validation and test indices in it.
    """
    splits = [split for split in (dataset.validation, dataset.test) if split]
    both = Split(*map(np.concatenate, zip(*splits, strict=True)))
    start, end = len(both.labels) - len(dataset.test.labels), len(both.labels)
    rows = len(eval_indices(range(max(start, end - start)), mesh))
    validation = eval_indices(range(start), mesh, rows) if start else None
    return (
        replicate(both, mesh),
        validation,
        eval_indices(range(start, end), mesh, rows),
    )


def fill_zeros(variables: Any) -> Any:
    """Returns variables with noise in place of arrays that are all 0.

    Behind a kernel that starts at 0, all images would have the same logits.
    """
    rng = np.random.default_rng(0)

    def fill(leaf: np.ndarray) -> jax.Array:
        noise = 0.05 * rng.standard_normal(leaf.shape)
        return jnp.asarray(leaf if np.any(leaf) else noise, leaf.dtype)

    return jax.tree.map(fill, jax.device_get(variables))


def differ(logits: np.ndarray, others: np.ndarray) -> bool:
    """Returns whether logits differ by more than rounding to bfloat16 explains."""
    with np.errstate(invalid="ignore"):  # infinite ones
        return bool(np.abs(logits - others).max() > 0.02 * np.abs(others).max())


def find_batch_dependence(
    model: nn.Module,
    preprocess: Preprocess,
    variables: Any,
    images: np.ndarray,
    sizes: Sequence[int] = (1,),
) -> str:
    """Returns what is wrong if the logits of images `[N,H,W]` depend on their batch.

    The batches are all images, and those of each of the sizes.
    """
    variables = fill_zeros(variables)
    run = jit(partial(compute_logits, model=model, preprocess=preprocess), QUICK)
    whole = np.asarray(run(variables, images))
    for size in sizes:
        starts = range(0, len(images) + 1 - size, size)
        parts = [run(variables, images[start : start + size]) for start in starts]
        batches = np.concatenate(parts)
        if differ(batches, whole[: len(batches)]):
            return (
                "in evaluation the logits of an image depend on the batch: they differ "
                f"in batches of {size} and {len(images)} images; turn noise off, let "
                "batch normalization use running averages, and give nn.Conv and "
                "pooling a channel axis, as in images[..., None]"
            )
    return ""
