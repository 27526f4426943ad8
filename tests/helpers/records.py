"""Complete records for tests of files, tables and reports, made up and recorded."""

from typing import Any

from helpers.processes import ROOT
from mnist_jax.config import TrainConfig
from mnist_jax.data.types import IMAGE_SHAPE, MNIST
from mnist_jax.models.networks import count_params, create_model
from mnist_jax.records.environment import Environment
from mnist_jax.records.schema import EpochRecord, RunRecord, read_jsonl
from mnist_jax.reporting.tables import comparison_frame, group_by_row, row_names

SIZES = dict(train_images=54_000, validation_images=6_000, test_images=10_000)


def make_environment(**changes: Any) -> Environment:
    """Returns the environment of a fictitious machine."""
    names = ("python", "jax", "jaxlib", "flax", "optax", "numpy")
    values: dict[str, Any] = dict(
        device="CPU A",
        platform="cpu",
        cores=2,
        **dict.fromkeys(names, "1.2.3"),
        xla_flags="",
        commit="0123456789abcdef",
        dirty=False,
        date="2026-01-01T00:00:00+00:00",
        load=0.5,
    )
    return Environment(**{**values, **changes})


def make_epochs(count: int, seconds: float = 1.0) -> list[EpochRecord]:
    """Returns improving epochs; the first takes half a second longer than the rest."""
    return [
        EpochRecord(
            epoch=epoch,
            loss=0.4 / epoch,
            accuracy=1 - 0.1 / epoch,
            val_loss=0.2 / epoch,
            val_accuracy=1 - 0.05 / epoch,
            train_seconds=seconds + (0.5 if epoch == 1 else 0.0),
            eval_seconds=0.1,
        )
        for epoch in range(1, count + 1)
    ]


def make_record(
    model: str = "mlp",
    seed: int = 0,
    accuracy: float = 0.97,
    device: str = "CPU A",
    **config_changes: Any,
) -> RunRecord:
    """Returns the record of a fictitious run on MNIST.

    Args:
        model: field of the config.
        seed: field of the config; steady epochs take `1 + seed` seconds.
        accuracy: test accuracy.
        device: device of the run.
        **config_changes: other fields of the config.
    """
    config = TrainConfig(model=model, seed=seed, **config_changes).for_dataset("mnist")
    seconds, steps = 1.0 + seed, -(-SIZES["train_images"] // config.batch_size)
    return RunRecord(
        config=config,
        dataset="mnist",
        dataset_note="",
        checksum="abc",
        **SIZES,
        parameters=count_params(create_model(config, MNIST), IMAGE_SHAPE),
        params_sha256="0" * 64,
        impl="cpu",
        devices=2,
        seeds_together=1,
        epochs=make_epochs(config.epochs, seconds),
        test_loss=0.1,
        test_accuracy=accuracy,
        compile_seconds=2.0,
        compile_cached=False,
        first_epoch_seconds=seconds + 0.5,
        steady_epoch_seconds=seconds if config.epochs > 1 else None,
        train_images_per_second=SIZES["train_images"] / seconds,
        step_milliseconds=1e3 * seconds / steps,
        evaluate_images_per_second=90_000.0,
        total_seconds=9.0,
        environment=make_environment(device=device),
    )


def recorded_runs() -> list[RunRecord]:
    """Returns the recorded runs of the three networks, of three seeds each."""
    return read_jsonl(RunRecord, ROOT / "benchmarks" / "results" / "compare.jsonl")


def rows_of(records: list[RunRecord]) -> dict[str, list[RunRecord]]:
    """Returns the records of each row of a table by the name of the row."""
    names = row_names(comparison_frame(records))
    return dict(zip(names, group_by_row(records), strict=True))
