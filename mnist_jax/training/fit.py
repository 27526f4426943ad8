"""Training runs: the loop over epochs and its timing."""

import dataclasses
import operator
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mnist_jax.config import TrainConfig
from mnist_jax.data.augment import all_shifts
from mnist_jax.data.batches import epoch_indices
from mnist_jax.models.layers import resolve_impl
from mnist_jax.models.networks import count_params
from mnist_jax.records.environment import Environment, current_environment
from mnist_jax.records.schema import EpochRecord, RunRecord
from mnist_jax.training import distributed
from mnist_jax.training.checkpoints import Checkpoint, params_sha256
from mnist_jax.training.diverged import check_finite, find_cause
from mnist_jax.training.epochs import predict_images
from mnist_jax.training.mesh import shard_seeds
from mnist_jax.training.optimizers import final_params, set_learning_rate
from mnist_jax.training.prepare import Experiment
from mnist_jax.training.steps import Metrics, TrainState

# Duration of a chunk of an epoch. Between chunks, the program reports progress and can
# be stopped. Each chunk adds about a millisecond.
CHUNK_SECONDS = 1.0


class Progress(NamedTuple):
    """Progress within an epoch, averaged over the seeds."""

    epoch: int
    step: int  # steps done in this epoch
    steps: int
    loss: float  # mean over the epoch's images so far, as is accuracy
    accuracy: float
    images_per_second: float  # of all seeds together
    seconds_left: float  # of training, until the last epoch ends


class Callbacks(NamedTuple):
    """Functions that `fit` calls; each may raise to stop training."""

    on_epoch: Callable[[Sequence[EpochRecord]], None]  # one record per seed
    on_chunk: Callable[[Progress], None]  # about every second, and after an epoch


SILENT = Callbacks(lambda records: None, lambda progress: None)


def _means(metrics: Metrics) -> list[tuple[float, float]]:
    """Returns each seed's mean loss and accuracy, from metrics `[seeds,...]`."""
    # In float64: a float32 sum over all losses of an epoch would lose digits.
    loss_sums, correct, images = (
        np.asarray(leaf, np.float64).reshape(len(leaf), -1).sum(axis=1)
        for leaf in metrics
    )
    means = zip(loss_sums / images, correct / images, strict=True)
    return [(float(loss), float(accuracy)) for loss, accuracy in means]


def _evaluate(
    experiment: Experiment, params: Any, indices: jax.Array
) -> tuple[list[tuple[float, float]], float]:
    """Returns each seed's mean loss and accuracy, and the total seconds."""
    start = time.perf_counter()
    metrics = experiment.programs.evaluate(params, experiment.held_out, indices)
    return _means(metrics), time.perf_counter() - start


def _tta_accuracy(experiment: Experiment, params: Any) -> float | None:
    """Returns the test accuracy of probabilities averaged over shifts, if asked for."""
    if not experiment.config.tta:
        return None
    test, params = experiment.dataset.test, jax.device_get(params)
    model, preprocess = experiment.model, experiment.preprocess
    totals = sum(
        predict_images(model, preprocess, params, shifted)
        for shifted in all_shifts(test.images, experiment.config.tta)
    )
    return float(np.mean(np.argmax(totals, axis=1) == test.labels))


def _best_epoch(epochs: Sequence[EpochRecord]) -> int:
    """Returns the epoch with the lowest validation loss, the first of equal ones."""
    return min(epochs, key=operator.attrgetter("val_loss")).epoch


def is_over(config: TrainConfig, epochs: Sequence[EpochRecord]) -> bool:
    """Returns whether a run ends after these epochs: by their number, or `patience`."""
    if len(epochs) >= config.epochs:
        return True
    if config.patience is None or not epochs:
        return False
    return len(epochs) - _best_epoch(epochs) >= config.patience


def _train_epoch(
    experiment: Experiment,
    states: TrainState,
    seeds: Sequence[int],
    keys: jax.Array,
    epoch: int,
    chunk_steps: int,
    on_chunk: Callable[[Progress], None],
    check: Callable[[int, Any], None],
) -> tuple[TrainState, Metrics, int]:
    """Runs the epoch after the first `epoch` in chunks of about `CHUNK_SECONDS`.

    Returns the states, the metrics of each step `[seeds,steps]` on the host, and the
    number of steps for the next chunk. `check` gets each seed's losses of a chunk.
    """
    config, programs = experiment.config, experiment.programs
    size = len(experiment.dataset.train.labels)
    orders = np.stack(
        [epoch_indices(seed, epoch, size, config.batch_size) for seed in seeds]
    )
    steps, indices = orders.shape[1], programs.shard(orders)
    chunks: list[Metrics] = []
    start = 0
    while start < steps:
        began = time.perf_counter()
        stop = min(start + chunk_steps, steps)
        states, metrics = programs.run_steps(
            states, experiment.train, indices, keys, start, stop
        )
        chunk = jax.device_get(metrics)
        # Losses of steps outside this chunk are 0.
        for number, losses in enumerate(chunk.loss_sum):
            check(number, losses)
        chunks.append(Metrics(*(leaf[:, start:stop] for leaf in chunk)))
        seconds_per_step = (time.perf_counter() - began) / (stop - start)
        # Processes with chunks of different sizes would wait for each other forever.
        wanted = max(1, round(CHUNK_SECONDS / seconds_per_step))
        chunk_steps = int(distributed.gather(wanted)[0])
        start = stop
        loss, accuracy = np.mean(_means(_join(chunks)), axis=0)
        on_chunk(
            Progress(
                epoch=epoch + 1,
                step=stop,
                steps=steps,
                loss=float(loss),
                accuracy=float(accuracy),
                images_per_second=len(seeds) * config.batch_size / seconds_per_step,
                seconds_left=((config.epochs - epoch) * steps - stop)
                * seconds_per_step,
            )
        )
    return states, _join(chunks), chunk_steps


def _join(chunks: Sequence[Metrics]) -> Metrics:
    """Concatenates the metrics of an epoch's chunks."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *chunks)


def _begin(
    experiment: Experiment,
    seeds: Sequence[int],
    start_params: Sequence[Any] | None,
    resume: Checkpoint | None,
) -> tuple[TrainState, jax.Array, list[list[EpochRecord]]]:
    """Returns the states to start from, the runs' keys and their finished epochs."""
    states, run_keys = experiment.programs.init_run(seeds)
    # The programs may have been compiled with another one: see `change_learning_rate`.
    rate = experiment.config.learning_rate
    states = states._replace(opt_state=set_learning_rate(states.opt_state, rate))
    histories: list[list[EpochRecord]] = [[] for _ in seeds]
    if resume is not None:
        states, histories = resume.states, [list(epochs) for epochs in resume.histories]
    elif start_params is not None:
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *start_params)
        states = states._replace(params=stacked)
    return shard_seeds(states, experiment.programs.mesh), run_keys, histories


def fit(
    experiment: Experiment,
    seeds: Sequence[int],
    callbacks: Callbacks = SILENT,
    start_params: Sequence[Any] | None = None,
    *,
    on_checkpoint: Callable[[Checkpoint], None] = lambda checkpoint: None,
    resume: Checkpoint | None = None,
) -> list[tuple[RunRecord, Any]]:
    """Trains the seeds together and evaluates each on the test set at the end.

    Args:
        experiment: returned by `prepare` for the same number of seeds.
        seeds: seeds of the initial parameters, shuffling and dropout, one per run. With
            `patience` there is only one, since each seed stops after another epoch.
        callbacks: called during training.
        start_params: initial parameters of each run, instead of random ones.
        on_checkpoint: called after each epoch with a checkpoint, before `on_epoch`, so
            that training can be resumed after every reported epoch.
        resume: checkpoint to resume from.

    Returns:
        Each seed's record and trained parameters (on the devices), with `patience`
        those of the epoch with the lowest validation loss. Seconds are per seed:
        wall-clock divided by the number of seeds. The total of a resumed run
        includes the epochs before the stop, but only the last compilation.

    Raises:
        DivergedError: a loss became NaN or infinite.
    """
    config, programs = experiment.config, experiment.programs
    if len(seeds) != experiment.seeds:
        raise ValueError(f"prepared for {experiment.seeds} seeds; got {len(seeds)}")
    early = config.patience is not None
    if early and len(seeds) > 1:
        raise ValueError(f"with patience, seeds train one by one; got {len(seeds)}")
    environment, began = current_environment(), time.perf_counter()
    begin = partial(_begin, experiment, seeds, start_params, resume)
    states, run_keys, histories = begin()
    if jax.process_count() > 1:
        start_values = {
            "the list of seeds": list(seeds),
            "the number of finished epochs": len(histories[0]),
            "the sha256 of the initial parameters": params_sha256(states.params),
        }
        distributed.agree(start_values)
    resumed = len(histories[0])

    def check(number: int, losses: Any) -> None:
        find = None
        # A replay of several epochs takes long; one process of a job cannot replay.
        if len(histories[0]) == resumed and jax.process_count() == 1:
            find = partial(find_cause, experiment, seeds, begin, number)
        check_finite(losses, config, seeds[number], histories[number], find)

    best_params = shard_seeds(resume.best_params, programs.mesh) if resume else None
    steps = -(-len(experiment.dataset.train.labels) // config.batch_size)
    chunk_steps = max(1, steps // 16)  # a first guess: nothing has been timed yet
    final_params(states.params, states.opt_state)  # compiled here, in no epoch's clock
    while not is_over(config, histories[0]):
        epoch = len(histories[0])
        keys = programs.epoch_keys(run_keys, epoch)  # compiles in the first epoch
        start = time.perf_counter()
        states, metrics, chunk_steps = _train_epoch(
            experiment,
            states,
            seeds,
            keys,
            epoch,
            chunk_steps,
            callbacks.on_chunk,
            check,
        )
        params = jax.block_until_ready(final_params(states.params, states.opt_state))
        train_seconds = (time.perf_counter() - start) / len(seeds)
        val_means: Sequence[tuple[float | None, float | None]]
        val_means, eval_seconds = [(None, None)] * len(seeds), 0.0
        if experiment.validation is not None:
            val_means, seconds = _evaluate(experiment, params, experiment.validation)
            eval_seconds = seconds / len(seeds)
            for number, (loss, _) in enumerate(val_means):
                check(number, loss)
        records = [
            EpochRecord(epoch + 1, *mean, *val_mean, train_seconds, eval_seconds)
            for mean, val_mean in zip(_means(metrics), val_means, strict=True)
        ]
        for history, epoch_record in zip(histories, records, strict=True):
            history.append(epoch_record)
        if early and _best_epoch(histories[0]) == epoch + 1:
            best_params = jax.tree.map(jnp.copy, params)  # states are donated
        on_checkpoint(Checkpoint(states, histories, best_params))
        callbacks.on_epoch(records)
    trained = best_params
    if not early:
        trained = final_params(states.params, states.opt_state)
    tests = [_evaluate(experiment, trained, experiment.test) for _ in range(3)]
    eval_seconds = statistics.median(seconds for _, seconds in tests) / len(seeds)
    params_of = [
        jax.tree.map(operator.itemgetter(n), trained) for n in range(len(seeds))
    ]
    tta_accuracies = [_tta_accuracy(experiment, params) for params in params_of]
    seconds = experiment.compile_seconds + time.perf_counter() - began
    runs = []
    earlier = histories[0][:resumed]
    seconds += len(seeds) * sum(e.train_seconds + e.eval_seconds for e in earlier)
    for number, (seed, test) in enumerate(zip(seeds, tests[0][0], strict=True)):
        check(number, test[0])
        record = _run_record(
            experiment,
            seed,
            histories[number],
            params_of[number],
            test,
            tta_accuracies[number],
            eval_seconds,
            seconds / len(seeds),
            environment,
        )
        runs.append((record, params_of[number]))
    return runs


def _run_record(
    experiment: Experiment,
    seed: int,
    epochs: list[EpochRecord],
    params: Any,
    test: tuple[float, float],
    tta_accuracy: float | None,
    eval_seconds: float,
    total_seconds: float,
    environment: Environment,
) -> RunRecord:
    """Returns the record of a finished run; `test` is its mean loss and accuracy."""
    config, dataset = experiment.config, experiment.dataset
    size, validation = len(dataset.train.labels), dataset.validation
    first, *rest = [epoch.train_seconds for epoch in epochs]
    epoch_seconds = statistics.median(rest or [first])
    standardized = config.pixels == "standardized"
    fast = config.model not in ("mlp", "lstm") and resolve_impl(config.impl) == "cpu"
    return RunRecord(
        config=dataclasses.replace(config, seed=seed),
        dataset=dataset.name,
        dataset_note=dataset.note,
        image_shape=dataset.shapes.image,
        classes=dataset.classes,
        class_names=dataset.class_names,
        checksum=dataset.checksum,
        train_images=size,
        validation_images=0 if validation is None else len(validation.labels),
        test_images=len(dataset.test.labels),
        parameters=count_params(experiment.model, dataset.shapes.image),
        params_sha256=params_sha256(params),
        impl=resolve_impl(config.impl),
        devices=experiment.programs.mesh.size,
        seeds_together=experiment.seeds,
        epochs=epochs,
        test_loss=test[0],
        test_accuracy=test[1],
        compile_seconds=experiment.compile_seconds,
        compile_cached=experiment.compile_cached,
        first_epoch_seconds=first,
        steady_epoch_seconds=epoch_seconds if rest else None,
        train_images_per_second=size / epoch_seconds,
        step_milliseconds=1e3 * epoch_seconds / -(-size // config.batch_size),
        evaluate_images_per_second=len(dataset.test.labels) / eval_seconds,
        total_seconds=total_seconds,
        environment=environment,
        pixel_mean=experiment.preprocess.mean if standardized else None,
        pixel_std=experiment.preprocess.std if standardized else None,
        source_sha256=experiment.source_sha256,
        tta_accuracy=tta_accuracy,
        best_epoch=None if config.patience is None else _best_epoch(epochs),
        float32_convolutions=fast and config.precision == "bfloat16",
    )
