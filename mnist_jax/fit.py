"""The epoch loop and the clock."""

import dataclasses
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
    make_batch_mesh,
    make_evaluate,
    make_train_epoch,
    replicate,
    shard_indices,
)
from mnist_jax.errors import InputError
from mnist_jax.flops import training_flops
from mnist_jax.models import count_params, create_model, resolve_kernels
from mnist_jax.records import EpochRecord, RunRecord, environment
from mnist_jax.steps import Metrics, create_optimizer, init_state


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A config's data on the devices and its compiled programs, for any seed."""

    config: TrainConfig
    dataset: Dataset
    model: nn.Module
    tx: optax.GradientTransformation
    mesh: Mesh
    train: Split
    validation: Split | None
    test: Split
    init: Compiled
    train_epoch: Compiled
    evaluate: dict[int, Compiled]  # by number of images
    compile_seconds: float


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


def choose_devices(config: TrainConfig) -> int:
    """Returns how many devices share a batch: all, on a CPU only as many as pay.

    The cores of devices left out still work, as threads of the others.

    Raises:
        InputError: the config asks for more CPU devices than JAX was started with.
    """
    devices = jax.device_count()
    if jax.default_backend() != "cpu":
        return devices
    if config.cpu_devices > devices:
        raise InputError(
            f"--cpu_devices must be at most the {devices} JAX was started with; got "
            f"{config.cpu_devices}; set jax_num_cpu_devices first or give fewer"
        )
    if config.cpu_devices:
        return config.cpu_devices
    operations = training_flops(config) * config.batch_size
    parameters = count_params(create_model(config))
    worth = int(operations / parameters / _OPERATIONS_PER_PARAMETER)
    return max(1, min(devices, worth, config.batch_size))


def prepare(
    config: TrainConfig, dataset: Dataset, mesh: Mesh | None = None
) -> Experiment:
    """Splits the data, puts it on the devices and compiles what a run needs.

    Args:
        config: what to run; its seed plays no part yet.
        dataset: as `load_dataset` returned it.
        mesh: devices that share each batch (default: `choose_devices`).

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
    mesh = mesh or make_batch_mesh(choose_devices(config))
    scale = make_scale(config, dataset)
    model = create_model(config)
    first_epoch = epoch_indices(0, 0, size, config.batch_size)
    tx = create_optimizer(config, len(first_epoch) * config.epochs)

    train, test = replicate(dataset.train, mesh), replicate(dataset.test, mesh)
    validation = None
    if dataset.validation is not None:
        same = dataset.validation is dataset.test
        validation = test if same else replicate(dataset.validation, mesh)

    start = time.perf_counter()
    key = jax.random.key(0)
    init = jax.jit(partial(init_state, model, tx)).lower(key).compile()
    state, key = replicate((init(key), key), mesh)
    indices = shard_indices(first_epoch, mesh)
    train_epoch = (
        make_train_epoch(model, tx, scale, mesh)
        .lower(state, train, indices, key)
        .compile()
    )
    evaluate = {
        len(split.labels): make_evaluate(model, scale, mesh)
        .lower(state.params, split, eval_indices(len(split.labels), mesh))
        .compile()
        for split in filter(None, (validation, test))
    }
    compile_seconds = time.perf_counter() - start
    return Experiment(
        config,
        dataset,
        model,
        tx,
        mesh,
        train,
        validation,
        test,
        init,
        train_epoch,
        evaluate,
        compile_seconds,
    )


def _means(metrics: Metrics) -> tuple[float, float]:
    """Fetches summed or per-step metrics: mean loss and accuracy over the images."""
    # In 64 bit, since a float32 sum over all losses of an epoch would lose digits.
    totals = [np.sum(np.asarray(leaf), dtype=np.float64) for leaf in metrics]
    loss_sum, correct, images = totals
    return float(loss_sum / images), float(correct / images)


def _evaluate(
    experiment: Experiment, params: Any, split: Split
) -> tuple[float, float, float]:
    """Returns mean loss, accuracy and seconds of a split."""
    size = len(split.labels)
    indices = eval_indices(size, experiment.mesh)
    start = time.perf_counter()
    loss, accuracy = _means(experiment.evaluate[size](params, split, indices))
    return loss, accuracy, time.perf_counter() - start


def check_finite(
    losses: Any, config: TrainConfig, epochs: Sequence[EpochRecord]
) -> None:
    """Ends a run whose loss is no number any more.

    Args:
        losses: of each step of an epoch `[steps]`, or one loss of an evaluation.
        config: of the run.
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
        f"{config.model}: the loss is {losses.flat[bad[0]]} at {place} of epoch "
        f"{min(len(epochs) + 1, config.epochs)}; {before}; try a --learning_rate below "
        f"{config.learning_rate:g} or --clip_norm=1"
    )


def fit(
    experiment: Experiment,
    seed: int,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    start_params: Any = None,
) -> tuple[RunRecord, Any]:
    """Trains once from a seed and evaluates on the test set at the end.

    Args:
        experiment: what `prepare` returned; runs of several seeds may share it.
        seed: of the initial parameters, the order of the images and dropout.
        on_epoch: called with each epoch's record as soon as it is known.
        start_params: parameters to start from instead of fresh ones of the seed.

    Returns:
        The record and the trained parameters (on the devices).

    Raises:
        InputError: the loss became NaN or infinite.
    """
    config, dataset = experiment.config, experiment.dataset
    machine, began = environment(), time.perf_counter()
    init_key, run_key = jax.random.split(jax.random.key(seed))
    state = experiment.init(init_key)
    if start_params is not None:
        state = state._replace(params=start_params)
    state = replicate(state, experiment.mesh)
    size = len(dataset.train.labels)
    epochs: list[EpochRecord] = []
    for epoch in range(config.epochs):
        start = time.perf_counter()
        indices = epoch_indices(seed, epoch, size, config.batch_size)
        state, metrics = experiment.train_epoch(
            state,
            experiment.train,
            shard_indices(indices, experiment.mesh),
            replicate(jax.random.fold_in(run_key, epoch), experiment.mesh),
        )
        loss, accuracy = _means(jax.block_until_ready(metrics))
        train_seconds = time.perf_counter() - start
        check_finite(metrics.loss_sum, config, epochs)
        val_loss = val_accuracy = None
        eval_seconds = 0.0
        if experiment.validation is not None:
            val_loss, val_accuracy, eval_seconds = _evaluate(
                experiment, state.params, experiment.validation
            )
            check_finite(val_loss, config, epochs)
        epoch_record = EpochRecord(
            epoch + 1,
            loss,
            accuracy,
            val_loss,
            val_accuracy,
            train_seconds,
            eval_seconds,
        )
        epochs.append(epoch_record)
        if on_epoch is not None:
            on_epoch(epoch_record)
    tests = [_evaluate(experiment, state.params, experiment.test) for _ in range(3)]
    test_loss, test_accuracy, _ = tests[0]
    check_finite(test_loss, config, epochs)
    steady = [epoch.train_seconds for epoch in epochs[1:]]
    epoch_seconds = statistics.median(steady or [epochs[0].train_seconds])
    record = RunRecord(
        config=config_to_dict(dataclasses.replace(config, seed=seed)),
        dataset=dataset.name,
        dataset_note=dataset.note,
        checksum=dataset.checksum,
        train_images=size,
        validation_images=0
        if dataset.validation is None
        else len(dataset.validation[1]),
        test_images=len(dataset.test.labels),
        parameters=count_params(experiment.model),
        params_sha256=params_sha256(state.params),
        kernels=resolve_kernels(config.kernels),
        devices=experiment.mesh.size,
        warm_start=start_params is not None,
        epochs=epochs,
        test_loss=test_loss,
        test_accuracy=test_accuracy,
        compile_seconds=experiment.compile_seconds,
        first_epoch_seconds=epochs[0].train_seconds,
        steady_epoch_seconds=epoch_seconds if steady else None,
        train_images_per_second=size / epoch_seconds,
        step_milliseconds=1e3 * epoch_seconds / len(indices),
        evaluate_images_per_second=len(dataset.test.labels)
        / statistics.median(seconds for _, _, seconds in tests),
        total_seconds=experiment.compile_seconds + time.perf_counter() - began,
        environment=machine,
    )
    return record, state.params
