"""From a config and a data set to compiled programs with their data on the devices."""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial

import jax
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh
from jax.stages import Compiled

from mnist_jax.config import TrainConfig
from mnist_jax.data.datasets import (
    Dataset,
    Split,
    epoch_indices,
    pixel_statistics,
    scale_pixels,
    split_dataset,
)
from mnist_jax.errors import InputError
from mnist_jax.models.flops import training_flops
from mnist_jax.models.networks import count_params, create_model
from mnist_jax.training.compile_cache import CompileClock
from mnist_jax.training.epochs import (
    eval_indices,
    make_evaluate,
    make_mesh,
    make_train_epoch,
    replicate,
    shard_indices,
    spread_seeds,
    step_bounds,
)
from mnist_jax.training.lowering import lower_program
from mnist_jax.training.steps import Metrics, create_optimizer, init_states


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A config's data on the devices and its compiled programs, for so many seeds."""

    config: TrainConfig
    seeds: int  # trained together, in one program
    dataset: Dataset
    model: nn.Module
    tx: optax.GradientTransformation
    mesh: Mesh
    train: Split
    held_out: Split  # validation images, then test images; once if they are the same
    validation: jax.Array | None  # places of the validation images in `held_out`
    test: jax.Array
    init: Compiled
    train_epoch: Compiled
    evaluate: Compiled
    compile_seconds: float
    compile_cached: bool


def split_data(config: TrainConfig, dataset: Dataset) -> Dataset:
    """Cuts a data set into training, validation and test sets as a config says."""
    return split_dataset(
        dataset,
        split=config.split,
        split_seed=config.split_seed,
        validation=config.validation,
        validation_fraction=config.validation_fraction,
        train_size=config.train_size,
    )


def make_scale(config: TrainConfig, dataset: Dataset) -> partial[jax.Array]:
    """Returns the config's pixel scaling, uint8 to float32, for a data set so cut."""
    if config.pixels != "standardized":  # counting MNIST's pixels takes 0.09 s
        return partial(scale_pixels, pixels=config.pixels)
    mean, std = pixel_statistics(dataset.train.images)
    return partial(scale_pixels, pixels=config.pixels, mean=mean, std=std)


# What a CPU device must have to do in a step for each parameter, in operations, before
# it pays to have it: every device also updates all parameters, and they exchange every
# gradient. Measured on two cores (docs/performance.md).
_OPERATIONS_PER_PARAMETER = 350


def choose_mesh(config: TrainConfig, seeds: int = 1) -> Mesh:
    """Returns the devices for so many seeds of a config: all, on a CPU those that pay.

    The seeds are spread first, as far as they can be dealt out evenly, since they have
    nothing to exchange; what devices are left share each batch. The cores of devices
    left out still work, as threads of the others.

    Raises:
        InputError: the config asks for more CPU devices than JAX was started with.
    """
    devices = jax.device_count()
    if config.cpu_devices > devices:
        raise InputError(
            f"--cpu_devices must be at most the {devices} JAX was started with; got "
            f"{config.cpu_devices}; set jax_num_cpu_devices first or give fewer"
        )
    devices = config.cpu_devices or devices
    seed_devices = math.gcd(seeds, devices)
    batch_devices = devices // seed_devices
    if jax.default_backend() == "cpu" and not config.cpu_devices:
        operations = training_flops(config) * config.batch_size
        parameters = count_params(create_model(config))
        worth = int(operations / parameters / _OPERATIONS_PER_PARAMETER)
        batch_devices = max(1, min(batch_devices, worth, config.batch_size))
    return make_mesh(batch_devices, seed_devices)


def _hold_out(
    dataset: Dataset, mesh: Mesh
) -> tuple[Split, jax.Array | None, jax.Array]:
    """Puts validation and test images into one split, so that one program serves both.

    Returns:
        The split on the devices and the places of validation and test images in it.
    """
    test, validation = dataset.test, dataset.validation
    size = len(test.labels)
    if validation is None or validation is test:
        places = eval_indices(range(size), mesh)
        return replicate(test, mesh), places if validation else None, places
    first = len(validation.labels)
    both = Split(*map(np.concatenate, zip(validation, test, strict=True)))
    rows = len(eval_indices(range(max(first, size)), mesh))
    parts = range(first), range(first, first + size)
    return replicate(both, mesh), *(eval_indices(part, mesh, rows) for part in parts)


def seed_keys(seeds: Sequence[int]) -> jax.Array:
    """Returns `jax.random.key(seed)` for each seed `0..2**32-1`, `[seeds]`.

    Made from the key's two words: the function itself would be compiled, for 0.03 s.
    """
    words = np.array([[0, seed] for seed in seeds], np.uint32)
    return jax.random.wrap_key_data(jax.device_put(words), impl="threefry2x32")


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
    dataset = split_data(config, dataset)
    size = len(dataset.train.labels)
    if config.batch_size > size:
        raise InputError(
            f"--batch_size must be at most the {size} training images; got "
            f"{config.batch_size}; give a smaller one"
        )
    mesh = mesh or choose_mesh(config, seeds)
    scale = make_scale(config, dataset)
    model = create_model(config)
    orders = np.stack([epoch_indices(0, 0, size, config.batch_size)] * seeds)
    tx = create_optimizer(config, orders.shape[1] * config.epochs)
    train = replicate(dataset.train, mesh)
    held_out, validation, test = _hold_out(dataset, mesh)

    with CompileClock() as clock:
        # With the arguments' shapes this is all that the programs are made from.
        lower = partial(
            lower_program,
            identity=(dataclasses.replace(config, seed=0), scale.keywords),
        )
        metrics = Metrics._make(range(3))
        keys = seed_keys(range(seeds))
        make_states = jax.jit(partial(init_states, model, tx))
        # The initial values take no time that a higher level could save: 0.3 s of
        # compiling in place of 1.4 s for the CNN, with the same bits (the LSTM's
        # orthogonal kernels: to their last digit).
        init = lower(
            "init", make_states, [keys], jax.eval_shape(make_states, keys)
        ).compile({"xla_backend_optimization_level": "0"})
        states, keys = spread_seeds((init(keys), keys), mesh)
        bounds = step_bounds(0, orders.shape[1], mesh)
        train_epoch = lower(
            "train_epoch",
            make_train_epoch(model, tx, scale, mesh),
            [states, train, shard_indices(orders, mesh), keys, bounds],
            (states, metrics),
            donate_argnums=(0,),
        ).compile()
        evaluate = lower(
            "evaluate",
            make_evaluate(model, scale, mesh),
            [states.params, held_out, test],
            metrics,
        ).compile()
    return Experiment(
        config=config,
        seeds=seeds,
        dataset=dataset,
        model=model,
        tx=tx,
        mesh=mesh,
        train=train,
        held_out=held_out,
        validation=validation,
        test=test,
        init=init,
        train_epoch=train_epoch,
        evaluate=evaluate,
        compile_seconds=clock.seconds,
        compile_cached=clock.cached,
    )
