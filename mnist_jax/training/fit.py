"""Training: a generator over the chunks and epochs of seeds trained together."""

import dataclasses
import operator
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mnist_jax.config import MODELS, TrainConfig
from mnist_jax.data.augment import all_shifts
from mnist_jax.data.batches import epoch_indices
from mnist_jax.errors import InputError
from mnist_jax.models.flops import has_convolutions
from mnist_jax.models.layers import resolve_impl
from mnist_jax.models.networks import count_params
from mnist_jax.records.environment import Environment, code_digest, current_environment
from mnist_jax.records.schema import EpochRecord, RunRecord
from mnist_jax.training import distributed
from mnist_jax.training.checkpoints import (
    Checkpoint,
    from_leaves,
    named_leaves,
    params_sha256,
)
from mnist_jax.training.epochs import predict_images
from mnist_jax.training.mesh import shard_seeds
from mnist_jax.training.optimizers import final_variables
from mnist_jax.training.prepare import Experiment
from mnist_jax.training.steps import Metrics, TrainState

# Duration of a chunk of an epoch. Between chunks, the caller reports progress and can
# stop. Each chunk adds about a millisecond.
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


class Epoch(NamedTuple):
    """A finished epoch of seeds trained together."""

    records: Sequence[EpochRecord]  # one per seed
    checkpoint: Checkpoint  # to resume from; its arrays are valid until the next step


class Result(NamedTuple):
    """A finished run."""

    record: RunRecord
    variables: Any  # on the devices


def fit(
    experiment: Experiment,
    seeds: Sequence[int],
    start_variables: Sequence[Any] | None = None,
    resume: Checkpoint | None = None,
) -> Iterator[Progress | Epoch | Result]:
    """Trains the seeds together and evaluates each on the test set at the end.

    Training continues when the next item is requested: a caller that requests no more
    stops it, and one that has stored the checkpoint of each `Epoch` loses nothing.

    Args:
        experiment: returned by `prepare` for the same number of seeds.
        seeds: seeds of the initial parameters, shuffling and dropout, one per run. With
            `patience` there is only one, since each seed stops after another epoch.
        start_variables: initial variables of each run, instead of random ones.
        resume: checkpoint to resume from.

    Yields:
        `Progress` about every second, but not at the end of an epoch; an `Epoch` after
        each; at last a `Result` per seed, with `patience` that of the epoch with the
        lowest validation loss. Seconds are per seed: wall-clock divided by the number
        of seeds. The total of a resumed run includes the epochs before the stop, but
        only the last compilation. A loss that is not finite is an `InputError`.
    """
    config, programs = experiment.config, experiment.programs
    early = config.patience is not None
    if len(seeds) != experiment.seeds:
        raise ValueError(f"prepared for {experiment.seeds} seeds; got {len(seeds)}")
    if early and len(seeds) > 1:
        raise ValueError(f"with patience, seeds train one by one; got {len(seeds)}")
    environment, began = current_environment(), time.perf_counter()
    if jax.process_count() > 1:
        _agree(experiment, seeds, environment, start_variables, resume)
    states, best, run_keys = _begin(experiment, seeds, start_variables, resume)
    histories = resume.histories if resume else [[] for _ in seeds]
    resumed = len(histories[0])
    size = len(experiment.dataset.train.labels)
    steps = -(-size // config.batch_size)
    chunk_steps = max(1, steps // 16)  # a first guess: nothing has been timed yet
    final_variables(states)  # compiled here, in no epoch's clock
    while not is_over(config, histories[0]):
        epoch = len(histories[0])
        keys = programs.epoch_keys(run_keys, epoch)  # compiles in the first epoch
        start = time.perf_counter()
        orders = [epoch_indices(seed, epoch, size, config.batch_size) for seed in seeds]
        indices = programs.shard(np.stack(orders))
        metrics = Metrics(*np.zeros((3, len(seeds), steps), np.float32))
        step = 0
        while step < steps:
            chunk_start = time.perf_counter()
            stop = min(step + chunk_steps, steps)
            states, chunk = programs.run_steps(
                states, experiment.train, indices, keys, step, stop
            )
            chunk = jax.device_get(chunk)  # 0 for steps outside the chunk
            _check_finite(chunk.loss_sum, config, seeds, epoch)
            metrics = jax.tree.map(np.add, metrics, chunk)
            seconds_per_step = (time.perf_counter() - chunk_start) / (stop - step)
            # Processes with chunks of different sizes would wait for each other.
            wanted = max(1, round(CHUNK_SECONDS / seconds_per_step))
            chunk_steps = int(distributed.gather(wanted)[0])
            step = stop
            if step < steps:
                loss, accuracy = _means(metrics).mean(axis=0).tolist()
                steps_left = (config.epochs - epoch) * steps - step
                yield Progress(
                    epoch + 1,
                    step,
                    steps,
                    loss,
                    accuracy,
                    images_per_second=len(seeds) * config.batch_size / seconds_per_step,
                    seconds_left=steps_left * seconds_per_step,
                )
        variables = jax.block_until_ready(final_variables(states))
        train_seconds = (time.perf_counter() - start) / len(seeds)
        validated: Any = np.full((len(seeds), 2), None)
        eval_seconds = 0.0
        if experiment.validation is not None:
            validated, seconds = _evaluate(experiment, variables, experiment.validation)
            eval_seconds = seconds / len(seeds)
            _check_finite(validated[:, 0], config, seeds, epoch)
        records = [
            EpochRecord(epoch + 1, *means, *[train_seconds, eval_seconds])
            for means in np.hstack([_means(metrics), validated]).tolist()
        ]
        histories = [[*h, new] for h, new in zip(histories, records, strict=True)]
        if early and _best_epoch(histories[0]) == epoch + 1:
            best = jax.tree.map(jnp.copy, variables)  # states are donated
        arrays = named_leaves({"states": states, "best": best})
        yield Epoch(records, Checkpoint(arrays, histories))

    trained = best if early else final_variables(states)
    tests = [_evaluate(experiment, trained, experiment.test) for _ in range(3)]
    tested = tests[0][0]
    _check_finite(tested[:, 0], config, seeds, len(histories[0]) - 1)
    eval_seconds = statistics.median(seconds for _, seconds in tests) / len(seeds)
    variables_of = [
        jax.tree.map(operator.itemgetter(n), trained) for n in range(len(seeds))
    ]
    tta_accuracies = [_tta_accuracy(experiment, each) for each in variables_of]
    seconds = experiment.compile_seconds + time.perf_counter() - began
    earlier = histories[0][:resumed]
    seconds += len(seeds) * sum(e.train_seconds + e.eval_seconds for e in earlier)
    for number, variables in enumerate(variables_of):
        run = _run_record(
            experiment,
            seeds[number],
            histories[number],
            variables,
            test_loss=float(tested[number, 0]),
            test_accuracy=float(tested[number, 1]),
            tta_accuracy=tta_accuracies[number],
            evaluate_images_per_second=len(experiment.dataset.test.labels)
            / eval_seconds,
            total_seconds=seconds / len(seeds),
            environment=environment,
        )
        yield Result(run, variables)


def finish(training: Iterable[Any]) -> list[Result]:
    """Trains to the end and returns the result of each seed."""
    return [item for item in training if isinstance(item, Result)]


def is_over(config: TrainConfig, epochs: Sequence[EpochRecord]) -> bool:
    """Returns whether a run ends after these epochs: by their number, or `patience`."""
    if config.patience is None or not epochs:
        return len(epochs) >= config.epochs
    return len(epochs) >= min(config.epochs, _best_epoch(epochs) + config.patience)


def _best_epoch(epochs: Sequence[EpochRecord]) -> int:
    """Returns the epoch with the lowest validation loss, the first of equal ones."""
    return min(epochs, key=operator.attrgetter("val_loss")).epoch


def _agree(
    experiment: Experiment,
    seeds: Sequence[int],
    environment: Environment,
    start_variables: Sequence[Any] | None,
    resume: Checkpoint | None,
) -> None:
    """Raises InputError if the processes of a job would train different runs."""
    names = "device", "platform", "python", "jax", "jaxlib", "flax", "optax", "numerics"
    values = {f"--{name}": value for name, value in vars(experiment.config).items()}
    values |= {name: getattr(environment, name) for name in names}
    values |= {
        "the sha256 of the data": experiment.dataset.checksum,
        "the digest of the code": code_digest(),
        "the sha256 of the network": experiment.source_sha256,
        "the list of seeds": list(seeds),
        "the number of devices": experiment.programs.mesh.size,
        "the number of finished epochs": resume.epoch if resume else 0,
        "the sha256 of the initial parameters": params_sha256(start_variables),
    }
    distributed.agree(values)


def _begin(
    experiment: Experiment,
    seeds: Sequence[int],
    start_variables: Sequence[Any] | None,
    resume: Checkpoint | None,
) -> tuple[TrainState, Any, jax.Array]:
    """Returns the states to start from, the best variables so far, and run keys."""
    config, programs = experiment.config, experiment.programs
    states, run_keys = programs.init_run(seeds)
    best = None if config.patience is None else states.variables
    if resume is not None:
        like = {"states": states, "best": best}
        found = from_leaves("the checkpoint", resume.arrays, like)
        found = shard_seeds(found, programs.mesh)
        return found["states"], found["best"], run_keys
    # A sweep compiles once for trials that differ in the learning rate only.
    rates = optax.tree.get(states.opt_state, "learning_rate")
    rates = np.full_like(rates, config.learning_rate)  # one for each seed
    opt_state = optax.tree.set(states.opt_state, learning_rate=rates)
    states = states._replace(opt_state=opt_state)
    if start_variables is not None:
        stats = jax.tree.map(lambda *leaves: np.stack(leaves), *start_variables)
        states = states._replace(params=stats.pop("params"), stats=stats)
    return shard_seeds(states, programs.mesh), best, run_keys


def _check_finite(
    losses: Any, config: TrainConfig, seeds: Sequence[int], epoch: int
) -> None:
    """Raises InputError if a loss is NaN or infinite.

    `losses` are those of the steps of an epoch `[seeds,steps]`, or of an evaluation
    `[seeds]`.
    """
    losses = np.asarray(losses)
    bad = np.argwhere(~np.isfinite(losses))
    if not bad.size:
        return
    seed, *step = bad[0].tolist()
    where = (
        f"at step {step[0] + 1} of {losses.shape[1]}" if step else "in the evaluation"
    )
    advice = f"try a --learning_rate below {config.learning_rate:g} or --clip_norm=1"
    if step == [0] and epoch == 0:
        advice = (
            "no step had changed the parameters yet, so the network, the parameters it "
            "starts from or --pixels are the cause, not the learning rate"
        )
    if config.model not in MODELS:
        advice += "; mnist_jax.check_model tests the network for such faults"
    raise InputError(
        f"{config.name}, seed {seeds[seed]}: the loss is {losses[*bad[0]]} {where} of "
        f"epoch {epoch + 1}; {advice}"
    )


def _means(metrics: Metrics) -> np.ndarray:
    """Returns each seed's mean loss and accuracy `[seeds,2]` of `[seeds,...]`."""
    # In float64: a float32 sum over all losses of an epoch would lose digits.
    loss_sums, correct, images = (
        np.asarray(leaf, np.float64).reshape(len(leaf), -1).sum(axis=1)
        for leaf in metrics
    )
    return np.stack([loss_sums / images, correct / images], axis=1)


def _evaluate(
    experiment: Experiment, variables: Any, indices: jax.Array
) -> tuple[np.ndarray, float]:
    """Returns each seed's mean loss and accuracy `[seeds,2]`, and the total seconds."""
    start = time.perf_counter()
    metrics = experiment.programs.evaluate(variables, experiment.held_out, indices)
    return _means(metrics), time.perf_counter() - start


def _tta_accuracy(experiment: Experiment, variables: Any) -> float | None:
    """Returns the test accuracy of probabilities averaged over shifts, if asked for."""
    if not experiment.config.tta:
        return None
    test, variables = experiment.dataset.test, jax.device_get(variables)
    model, preprocess = experiment.model, experiment.preprocess
    totals = sum(
        predict_images(model, preprocess, variables, shifted)
        for shifted in all_shifts(test.images, experiment.config.tta)
    )
    return float(np.mean(np.argmax(totals, axis=1) == test.labels))


def _run_record(
    experiment: Experiment,
    seed: int,
    epochs: list[EpochRecord],
    variables: Any,
    **measured: Any,
) -> RunRecord:
    """Returns the record of a finished run; `measured` are more of its fields."""
    config, dataset = experiment.config, experiment.dataset
    size, validation = len(dataset.train.labels), dataset.validation
    first, *rest = [epoch.train_seconds for epoch in epochs]
    epoch_seconds = statistics.median(rest or [first])
    impl = resolve_impl(config.impl)
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
        params_sha256=params_sha256(variables),
        impl=impl,
        devices=experiment.programs.mesh.size,
        seeds_together=experiment.seeds,
        epochs=epochs,
        compile_seconds=experiment.compile_seconds,
        compile_cached=experiment.compile_cached,
        first_epoch_seconds=first,
        steady_epoch_seconds=epoch_seconds if rest else None,
        train_images_per_second=size / epoch_seconds,
        step_milliseconds=1e3 * epoch_seconds / -(-size // config.batch_size),
        pixel_mean=experiment.preprocess.mean,
        pixel_std=experiment.preprocess.std,
        source_sha256=experiment.source_sha256,
        best_epoch=None if config.patience is None else _best_epoch(epochs),
        float32_convolutions=(
            (config.precision, impl) == ("bfloat16", "cpu")
            and has_convolutions(experiment.model, dataset.shapes.image)
        ),
        **measured,
    )
