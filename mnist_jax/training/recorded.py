"""Which runs are on record already, so that a sweep goes on where it stopped."""

import json
from collections.abc import Iterable

from mnist_jax.config import TrainConfig, config_to_dict
from mnist_jax.data.datasets import Dataset
from mnist_jax.records.schema import Record, environment, place


def recorded_seeds(
    records: Iterable[Record],
    config: TrainConfig,
    dataset: Dataset,
    system: str | None = None,
) -> set[int]:
    """Returns the seeds with which a config has been run.

    A run counts if its config, data, machine, versions and `XLA_FLAGS` are those of
    now. The commit is not asked for: who changes the code and wants other numbers gives
    another --out.

    Args:
        records: of runs, with the fields `tables.NEEDED`.
        config: what is to be run; its seed plays no part.
        dataset: as `load_dataset` returned it.
        system: the published system that the runs are of, if any.
    """
    planned = planned_identity(config, dataset, system)
    return {
        record["config"]["seed"] for record in records if _identity(record) == planned
    }


def planned_identity(
    config: TrainConfig, dataset: Dataset, system: str | None = None
) -> str:
    """Returns what the records of runs to come would have in common, as a text.

    Args:
        config: what is to be run; its seed plays no part.
        dataset: as `load_dataset` returned it.
        system: the published system that the runs are of, if any.
    """
    planned = {
        "config": config_to_dict(config),
        "checksum": dataset.checksum,
        "dataset_note": dataset.note,
        "environment": environment(),
        "system": system,
    }
    return _identity(planned)


def announce_recorded(name: str, seed: int) -> None:
    """Prints that a run is left out, and thereby why its table comes at once."""
    print(f"{name}, seed {seed}: already recorded", flush=True)


def _identity(record: Record) -> str:
    """Returns what makes a run the same as another but for its seed, as a text."""
    config = {**record["config"], "seed": None}
    flags = record["environment"]["xla_flags"]
    identity = [record.get("system"), config, place(record), flags]
    return json.dumps(identity, sort_keys=True)
