"""The epoch loop and the clock."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh
from jax.stages import Compiled

from mnist_jax.checkpoint import params_sha256
from mnist_jax.compiling import CompileClock
from mnist_jax.config import TrainConfig, config_to_dict
from mnist_jax.data import (
    Dataset,
    Split,
    epoch_indices,
    pixel_statistics,
    scale_pixels,
    split_dataset,
)
from mnist_jax.epochs import (
    eval_indices,
    make_evaluate,
    make_mesh,
    make_train_epoch,
    replicate,
    shard_indices,
    spread_seeds,
)
from mnist_jax.errors import InputError
from mnist_jax.flops import training_flops
from mnist_jax.models import count_params, create_model, resolve_kernels
from mnist_jax.records import EpochRecord, RunRecord, environment
from mnist_jax.steps import Metrics, create_optimizer, init_states


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


def make_scale(
    config: TrainConfig, dataset: Dataset
) -> Callable[[jax.Array], jax.Array]:
    """Returns the config's pixel scaling, uint8 to float32, for a data set so cut."""
    mean, std = pixel_statistics(dataset.train.images)
    return partial(scale_pixels, pixels=config.pixels, mean=mean, std=std)


# What a CPU device must have to do in a step for each parameter, in operations, before
# it pays to have it: every device also updates all parameters, and they exchange every
# gradient. Measured on two cores (docs/performance.md).
_OPERATIONS_PER_PARAMETER = 2_000


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
    """Returns a key for each seed `[seeds]`."""
    data = [jax.random.key_data(jax.random.key(seed)) for seed in seeds]
    return jax.random.wrap_key_data(jax.device_put(np.stack(data)))


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
        keys = seed_keys(range(seeds))
        # The initial values take no time that a higher level could save: 0.4 s of
        # compiling in place of 1.4 s for the CNN, with the same bits.
        init = (
            jax.jit(partial(init_states, model, tx))
            .lower(keys)
            .compile({"xla_backend_optimization_level": "1"})
        )
        states, keys = spread_seeds((init(keys), keys), mesh)
        train_epoch = (
            make_train_epoch(model, tx, scale, mesh)
            .lower(states, train, shard_indices(orders, mesh), keys)
            .compile()
        )
        evaluate = (
            make_evaluate(model, scale, mesh)
            .lower(states.params, held_out, test)
            .compile()
        )
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


def _means(metrics: Metrics) -> list[tuple[float, float]]:
    """Fetches metrics `[seeds,...]`: each seed's mean loss and accuracy over images."""
    # In 64 bit, since a float32 sum over all losses of an epoch would lose digits.
    loss_sums, correct, images = (
        np.asarray(leaf, np.float64).reshape(len(leaf), -1).sum(axis=1)
        for leaf in metrics
    )
    means = zip(loss_sums / images, correct / images, strict=True)
    return [(float(loss), float(accuracy)) for loss, accuracy in means]


def _evaluate(
    experiment: Experiment, params: Any, places: jax.Array
) -> tuple[list[tuple[float, float]], float]:
    """Returns each seed's mean loss and accuracy, and the seconds all of them took."""
    start = time.perf_counter()
    means = _means(experiment.evaluate(params, experiment.held_out, places))
    return means, time.perf_counter() - start


def check_finite(
    losses: Any, config: TrainConfig, seed: int, epochs: Sequence[EpochRecord]
) -> None:
    """Ends a run whose loss is no number any more.

    Args:
        losses: of each step of an epoch `[steps]`, or one loss of an evaluation.
        config: of the run.
        seed: of the run.
        epochs: those recorded so far.

    Raises:
        InputError: a loss is NaN or infinite; it names the first and what to change.
    """
    losses = np.asarray(losses)
    bad = np.flatnonzero(~np.isfinite(losses))
    if not bad.size:
        return
    place = f"step {bad[0] + 1} of {losses.size}" if losses.ndim else "the evaluation"
    before = "no epoch was finished before"
    if epochs:
        last = epochs[-1]
        before = (
            f"epoch {last.epoch} ended with loss {last.loss:.4f} and accuracy "
            f"{last.accuracy:.4f}"
        )
    raise InputError(
        f"{config.model}, seed {seed}: the loss is {losses.flat[bad[0]]} at {place} "
        f"of epoch {min(len(epochs) + 1, config.epochs)}; {before}; try a "
        f"--learning_rate below {config.learning_rate:g} or --clip_norm=1"
    )


def fit(
    experiment: Experiment,
    seeds: Sequence[int],
    on_epoch: Callable[[Sequence[EpochRecord]], None] | None = None,
    start_params: Sequence[Any] | None = None,
) -> list[tuple[RunRecord, Any]]:
    """Trains the seeds together and evaluates each on the test set at the end.

    Args:
        experiment: what `prepare` returned, for as many seeds.
        seeds: of initial parameters, order of the images and dropout, one for each run.
        on_epoch: called with the seeds' records of each epoch as soon as it ends.
        start_params: each run's parameters to start from, instead of fresh ones.

    Returns:
        Each seed's record and trained parameters (on the devices). Seconds are the
        seed's share: wall-clock over the number of seeds.

    Raises:
        InputError: a loss became NaN or infinite.
    """
    config, dataset = experiment.config, experiment.dataset
    if len(seeds) != experiment.seeds:
        raise ValueError(f"prepared for {experiment.seeds} seeds; got {len(seeds)}")
    machine, began = environment(), time.perf_counter()
    init_keys, run_keys = jax.vmap(jax.random.split, out_axes=1)(seed_keys(seeds))
    states = experiment.init(init_keys)
    if start_params is not None:
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *start_params)
        states = states._replace(params=stacked)
    states = spread_seeds(states, experiment.mesh)
    size = len(dataset.train.labels)
    histories: list[list[EpochRecord]] = [[] for _ in seeds]
    for epoch in range(config.epochs):
        start = time.perf_counter()
        orders = np.stack(
            [epoch_indices(seed, epoch, size, config.batch_size) for seed in seeds]
        )
        keys = jax.vmap(jax.random.fold_in, (0, None))(run_keys, epoch)
        states, metrics = experiment.train_epoch(
            states,
            experiment.train,
            shard_indices(orders, experiment.mesh),
            spread_seeds(keys, experiment.mesh),
        )
        means = _means(jax.block_until_ready(metrics))
        train_seconds = (time.perf_counter() - start) / len(seeds)
        for seed, losses, history in zip(
            seeds, np.asarray(metrics.loss_sum), histories, strict=True
        ):
            check_finite(losses, config, seed, history)
        val_means: Sequence[tuple[float | None, float | None]]
        val_means, eval_seconds = [(None, None)] * len(seeds), 0.0
        if experiment.validation is not None:
            val_means, seconds = _evaluate(
                experiment, states.params, experiment.validation
            )
            eval_seconds = seconds / len(seeds)
            for seed, (loss, _), history in zip(
                seeds, val_means, histories, strict=True
            ):
                check_finite(loss, config, seed, history)
        records = [
            EpochRecord(epoch + 1, *mean, *val_mean, train_seconds, eval_seconds)
            for mean, val_mean in zip(means, val_means, strict=True)
        ]
        for history, epoch_record in zip(histories, records, strict=True):
            history.append(epoch_record)
        if on_epoch is not None:
            on_epoch(records)
    tests = [_evaluate(experiment, states.params, experiment.test) for _ in range(3)]
    eval_seconds = statistics.median(seconds for _, seconds in tests) / len(seeds)
    seconds = experiment.compile_seconds + time.perf_counter() - began
    first, *rest = [record.train_seconds for record in histories[0]]
    epoch_seconds = statistics.median(rest or [first])
    runs = []
    for number, seed in enumerate(seeds):
        test_loss, test_accuracy = tests[0][0][number]
        check_finite(test_loss, config, seed, histories[number])
        params = jax.tree.map(lambda leaf, number=number: leaf[number], states.params)
        record = RunRecord(
            config=config_to_dict(dataclasses.replace(config, seed=seed)),
            dataset=dataset.name,
            dataset_note=dataset.note,
            checksum=dataset.checksum,
            train_images=size,
            validation_images=0
            if dataset.validation is None
            else len(dataset.validation.labels),
            test_images=len(dataset.test.labels),
            parameters=count_params(experiment.model),
            params_sha256=params_sha256(params),
            kernels=resolve_kernels(config.kernels),
            devices=experiment.mesh.size,
            seeds_together=len(seeds),
            warm_start=start_params is not None,
            epochs=histories[number],
            test_loss=test_loss,
            test_accuracy=test_accuracy,
            compile_seconds=experiment.compile_seconds,
            compile_cached=experiment.compile_cached,
            first_epoch_seconds=first,
            steady_epoch_seconds=epoch_seconds if rest else None,
            train_images_per_second=size / epoch_seconds,
            step_milliseconds=1e3 * epoch_seconds / orders.shape[1],
            evaluate_images_per_second=len(dataset.test.labels) / eval_seconds,
            total_seconds=seconds / len(seeds),
            environment=machine,
        )
        runs.append((record, params))
    return runs
