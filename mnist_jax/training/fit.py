"""The epoch loop and the clock."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mnist_jax.config import TrainConfig, config_to_dict
from mnist_jax.data.datasets import epoch_indices
from mnist_jax.errors import InputError
from mnist_jax.models.networks import count_params, resolve_kernels
from mnist_jax.records.schema import EpochRecord, RunRecord, environment
from mnist_jax.training.epochs import shard_indices, spread_seeds, step_bounds
from mnist_jax.training.experiment import Experiment, seed_keys
from mnist_jax.training.params_file import params_sha256
from mnist_jax.training.steps import Metrics, TrainState

# How long a part of an epoch takes, after which the program can tell how far it is and
# hears that it is to stop. A part costs about a millisecond.
PART_SECONDS = 1.0


class Snapshot(NamedTuple):
    """All that the rest of a run depends on, between two epochs."""

    states: TrainState  # of each seed, stacked
    histories: list[list[EpochRecord]]  # by seed, then by epoch

    @property
    def epoch(self) -> int:
        """Epochs that are done."""
        return len(self.histories[0])


class Progress(NamedTuple):
    """How far an epoch is, in the mean over the seeds."""

    epoch: int
    step: int  # steps done in this epoch
    steps: int
    loss: float  # means over the epoch's images so far
    accuracy: float
    images_per_second: float  # of all seeds together
    seconds_left: float  # of training, to the end of the last epoch


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


def _train_epoch(
    experiment: Experiment,
    states: TrainState,
    seeds: Sequence[int],
    keys: jax.Array,
    histories: Sequence[Sequence[EpochRecord]],
    part_steps: int,
    on_part: Callable[[Progress], None] | None,
) -> tuple[TrainState, Metrics, int]:
    """Runs the epoch after `histories` in parts of about `PART_SECONDS`.

    Returns:
        The states, the metrics of each step `[seeds,steps]` on the host, and how many
        steps the next part should have.

    Raises:
        InputError: a loss of a part is NaN or infinite.
    """
    config, mesh, epoch = experiment.config, experiment.mesh, len(histories[0])
    size = len(experiment.dataset.train.labels)
    orders = np.stack(
        [epoch_indices(seed, epoch, size, config.batch_size) for seed in seeds]
    )
    steps = orders.shape[1]
    indices, keys = shard_indices(orders, mesh), spread_seeds(keys, mesh)
    parts: list[Metrics] = []
    first = 0
    while first < steps:
        start = time.perf_counter()
        last = min(first + part_steps, steps)
        states, metrics = experiment.train_epoch(
            states, experiment.train, indices, keys, step_bounds(first, last, mesh)
        )
        part = jax.device_get(metrics)
        # Losses of steps that are not of this part are 0.
        for seed, losses, history in zip(seeds, part.loss_sum, histories, strict=True):
            check_finite(losses, config, seed, history)
        parts.append(Metrics(*(leaf[:, first:last] for leaf in part)))
        seconds_per_step = (time.perf_counter() - start) / (last - first)
        part_steps = max(1, round(PART_SECONDS / seconds_per_step))
        first = last
        if on_part is not None:
            loss, accuracy = np.mean(_means(_join(parts)), axis=0)
            left = (config.epochs - epoch) * steps - last
            on_part(
                Progress(
                    epoch=epoch + 1,
                    step=last,
                    steps=steps,
                    loss=float(loss),
                    accuracy=float(accuracy),
                    images_per_second=len(seeds) * config.batch_size / seconds_per_step,
                    seconds_left=left * seconds_per_step,
                )
            )
    return states, _join(parts), part_steps


def _join(parts: Sequence[Metrics]) -> Metrics:
    """Puts the metrics of an epoch's parts behind each other."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *parts)


def fit(
    experiment: Experiment,
    seeds: Sequence[int],
    on_epoch: Callable[[Sequence[EpochRecord]], None] | None = None,
    start_params: Sequence[Any] | None = None,
    *,
    on_part: Callable[[Progress], None] | None = None,
    on_snapshot: Callable[[Snapshot], None] | None = None,
    resume: Snapshot | None = None,
) -> list[tuple[RunRecord, Any]]:
    """Trains the seeds together and evaluates each on the test set at the end.

    Args:
        experiment: what `prepare` returned, for as many seeds.
        seeds: of initial parameters, order of the images and dropout, one for each run.
        on_epoch: called with the seeds' records of each epoch as soon as it ends.
        start_params: each run's parameters to start from, instead of fresh ones.
        on_part: called about once a second within each epoch, and at its end.
        on_snapshot: called after each epoch with all that the rest depends on, before
            `on_epoch`, so that no epoch is told that could not be gone on from.
        resume: what `on_snapshot` was given by a run that stopped: its rest is run.

    Returns:
        Each seed's record and trained parameters (on the devices). Seconds are the
        seed's share: wall-clock over the number of seeds. Of a resumed run the total
        holds the epochs before the stop, and the last compiling only.

    Raises:
        InputError: a loss became NaN or infinite.
    """
    config, dataset = experiment.config, experiment.dataset
    if len(seeds) != experiment.seeds:
        raise ValueError(f"prepared for {experiment.seeds} seeds; got {len(seeds)}")
    machine, began = environment(), time.perf_counter()
    init_keys, run_keys = jax.vmap(jax.random.split, out_axes=1)(seed_keys(seeds))
    histories: list[list[EpochRecord]] = [[] for _ in seeds]
    if resume is not None:
        states, histories = resume.states, [list(part) for part in resume.histories]
    else:
        states = experiment.init(init_keys)
        if start_params is not None:
            stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *start_params)
            states = states._replace(params=stacked)
    states, resumed = spread_seeds(states, experiment.mesh), len(histories[0])
    size = len(dataset.train.labels)
    steps = -(-size // config.batch_size)
    part_steps = max(1, steps // 16)  # a first guess, since nothing is timed yet
    for epoch in range(resumed, config.epochs):
        start = time.perf_counter()
        keys = jax.vmap(jax.random.fold_in, (0, None))(run_keys, epoch)
        states, metrics, part_steps = _train_epoch(
            experiment, states, seeds, keys, histories, part_steps, on_part
        )
        train_seconds = (time.perf_counter() - start) / len(seeds)
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
            for mean, val_mean in zip(_means(metrics), val_means, strict=True)
        ]
        for history, epoch_record in zip(histories, records, strict=True):
            history.append(epoch_record)
        if on_snapshot is not None:
            on_snapshot(Snapshot(states, histories))
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
        earlier = histories[number][:resumed]
        before = sum(epoch.train_seconds + epoch.eval_seconds for epoch in earlier)
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
            step_milliseconds=1e3 * epoch_seconds / steps,
            evaluate_images_per_second=len(dataset.test.labels) / eval_seconds,
            total_seconds=seconds / len(seeds) + before,
            environment=machine,
        )
        runs.append((record, params))
    return runs
