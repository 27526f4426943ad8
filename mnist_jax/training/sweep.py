"""Checkpoints of a sweep's runs until these are on record, to go on from after a stop.

They lie in a folder beside the results, whose name says which runs they are of and ends
in a digest of all that decides how those go: checkpoints of another config, of other
data, versions or code are in other folders and thus never taken up.
"""

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Iterator, Set
from pathlib import Path

from mnist_jax.config import TrainConfig
from mnist_jax.data.datasets import Dataset
from mnist_jax.errors import InputError
from mnist_jax.records.files import code_digest, lock_folder
from mnist_jax.training.checkpoints import load_snapshot
from mnist_jax.training.fit import Snapshot
from mnist_jax.training.recorded import planned_identity

HOW_TO_GO_ON = "the same command goes on where this one stopped"


@contextlib.contextmanager
def unfinished_folder(
    out: Path,
    name: str,
    config: TrainConfig,
    dataset: Dataset,
    seeds: range,
    check_stopped: Callable[[], None],
    system: str | None = None,
) -> Iterator[Path]:
    """Keeps a folder for checkpoints while the context lasts; an error leaves it there.

    Another process with the same runs waits, so that it finds them on record: read the
    records within the context.

    Args:
        out: where the results go.
        name: of what is trained.
        config: of the runs; its seed plays no part.
        dataset: as `load_dataset` returned it.
        seeds: that were asked for.
        check_stopped: called while it waits; raises if the program is to end.
        system: the published system that the runs are of, if any.
    """
    identity = f"{planned_identity(config, dataset, system)} {code_digest()}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    folder = out / f"unfinished-{name}-seeds{seeds[0]}-{seeds[-1]}-{digest}"

    def tell() -> None:
        print(f"{name}: waiting for the process that trains the same", flush=True)

    with lock_folder(folder, tell, check_stopped):
        yield folder
        # Where this process waited, the other one has removed it.
        shutil.rmtree(folder, ignore_errors=True)


def take_up(
    folder: Path, name: str, config: TrainConfig, missing: Set[int]
) -> tuple[dict[int, Path], Snapshot | None]:
    """Returns which seeds to train together and from where to go on, and says so.

    Seeds are trained on together with those that they were stopped with, even where
    some of these came on record before the stop: alone they might be rounded otherwise.

    Args:
        folder: what `unfinished_folder` gave.
        name: of what is trained.
        config: of the runs.
        missing: seeds that are not on record.

    Returns:
        A folder for the checkpoints of each seed to train; a snapshot of these seeds,
        or None to start from the beginning.
    """
    held = {int(path.name.removeprefix("seed")) for path in folder.glob("seed*")}
    seeds = sorted(held if held >= missing else missing)
    folders = {seed: folder / f"seed{seed}" for seed in seeds}
    snapshot = None
    with contextlib.suppress(InputError):  # none is sound: each was named in a warning
        snapshot = load_snapshot(folders, config)
    if snapshot is not None:
        print(f"{name}: going on after epoch {snapshot.epoch}", flush=True)
        return folders, snapshot
    if held:
        print(f"{name}: no checkpoint to go on from, starting anew", flush=True)
    for seed in held:  # lest later epochs of theirs be taken for the newest
        shutil.rmtree(folder / f"seed{seed}")
    return folders, None
