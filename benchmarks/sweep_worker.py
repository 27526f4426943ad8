"""The trials of a sweep: a queue in Optuna's journal, and workers that train them.

All processes of a sweep, on this machine or on a Ray cluster, run the same `Worker`.
They share the folder of the sweep and nothing else.
"""

import contextlib
import dataclasses
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mnist_jax.cli.main import Machine
from mnist_jax.config import TrainConfig, as_text
from mnist_jax.data.types import Dataset
from mnist_jax.errors import DivergedError, InputError
from mnist_jax.records.files import write_file
from mnist_jax.records.schema import EpochRecord
from mnist_jax.reporting.sweep_tables import (
    JOURNAL,
    import_optuna,
    open_storage,
    open_studies,
    validation_accuracy,
)
from mnist_jax.training.checkpoints import remove_checkpoints
from mnist_jax.training.fit import Epoch
from mnist_jax.training.prepare import Experiment, change_learning_rate, prepare
from mnist_jax.training.results import RUNS, digest
from mnist_jax.training.run_dir import read_record, run_keys
from mnist_jax.training.runs import train_runs

from .sweep_space import Axis, Settings, check_trainable, make_config

ATTEMPTS = 5  # to train a trial whose process dies, as without memory


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What all processes of a sweep know."""

    out: Path
    axes: Sequence[Axis]
    base: Mapping[str, Any]  # see `make_config`
    dataset: Dataset
    seeds: Sequence[int]
    tpe: bool  # whether the workers draw the settings
    search_seed: int
    prune: tuple[int, int] | None  # --min_epochs and --reduction
    machine: Machine
    cores: int  # of a trial
    quiet: bool


class Queue:
    """The trials of a sweep, in the journal that its processes share."""

    def __init__(self, sweep: Sweep) -> None:
        """Opens the journal; raises InputError if it has trials on other data."""
        optuna, data = import_optuna(), sweep.dataset
        self.sweep, self._states = sweep, optuna.trial.TrialState
        self._storage = open_storage(sweep.out)
        for study in open_studies(self._storage):
            if (other := study.user_attrs.get("checksum")) not in (None, data.checksum):
                raise InputError(
                    f"--out={sweep.out} holds trials on other data than {data.name} "
                    f"(sha256 {other}, now {data.checksum}), whose accuracies do not "
                    "compare; give another --out"
                )
        pruner = optuna.pruners.NopPruner()
        if sweep.prune:
            pruner = optuna.pruners.SuccessiveHalvingPruner(*sweep.prune)
        self._study = optuna.create_study(
            storage=self._storage,
            pruner=pruner,
            study_name=digest(sorted(sweep.axes), sweep.base, [*sweep.seeds]),
            direction="maximize",
            load_if_exists=True,
        )

    def trials(self, *states: str) -> list[Any]:
        """Returns the trials in Optuna's states, or all."""
        chosen = [self._states[state] for state in states] or None
        found = self._study.get_trials(deepcopy=False, states=chosen)
        return [trial for trial in found if "queued" in trial.user_attrs]

    def fill(self, chosen: Sequence[Settings], samples: int) -> None:
        """Adds the missing trials, also of those whose folder was deleted.

        Args:
            chosen: settings to train.
            samples: number of trials whose settings the workers draw.
        """
        sweep = self.sweep
        given = {name: as_text(value) for name, value in sweep.base.items()}
        self._study.set_user_attr("flags", given)
        self._study.set_user_attr("seeds", [*sweep.seeds])
        self._study.set_user_attr("checksum", sweep.dataset.checksum)
        known = [
            trial.user_attrs["queued"]
            for trial in self.trials()
            if not (trial.state.is_finished() and "folder" in trial.user_attrs)
            or (sweep.out / RUNS / trial.user_attrs["folder"]).exists()
        ]
        for settings in chosen:
            if settings not in known:
                drawn = {a.name: a.parameter(settings[a.name]) for a in sweep.axes}
                self._study.enqueue_trial(drawn, {"queued": settings})
        for _ in range(samples - len(known)):
            self._study.enqueue_trial({}, {"queued": {}})

    def requeue(self, worker: int | None = None) -> int:
        """Lets trials whose process has ended wait again; returns their number.

        Args:
            worker: whose trial, which fails after too many attempts; None for all.
        """
        study = self._storage.get_study_id_from_name(self._study.study_name)
        found = [
            trial
            for trial in self.trials("RUNNING")
            if worker in (None, trial.user_attrs.get("worker"))
        ]
        for trial in found:
            id = self._storage.get_trial_id_from_study_id_trial_number(
                study, trial.number
            )
            attempts = trial.user_attrs.get("attempts", 0) if worker is not None else 0
            self._storage.set_trial_user_attr(id, "attempts", attempts)
            self._storage.set_trial_user_attr(id, "worker", None)
            if attempts < ATTEMPTS:
                self._storage.set_trial_state_values(id, self._states.WAITING)
            else:
                reason = f"its process died {attempts} times"
                self._storage.set_trial_user_attr(id, "reason", reason)
                self._study.tell(trial.number, state=self._states.FAIL)
        return len(found)

    def take(self, worker: int) -> Any:
        """Returns the next trial, which now runs, or None if none waits."""
        if not (waiting := self.trials("WAITING")):
            return None
        samplers = import_optuna().samplers
        # What was drawn before, or is drawn by another process, is not drawn again.
        started = len(self.trials()) - len(waiting)
        seed = random.Random(f"{self.sweep.search_seed} {started} {worker}")
        kind = samplers.TPESampler if self.sweep.tpe else samplers.RandomSampler
        self._study.sampler = kind(seed=seed.getrandbits(32))
        trial = self._study.ask()
        if "queued" not in trial.user_attrs:  # another process took the last one
            self.tell(trial, "FAIL")
            return None
        trial.set_user_attr("worker", worker)
        trial.set_user_attr("attempts", trial.user_attrs.get("attempts", 0) + 1)
        return trial

    def tell(self, trial: Any, state: str, value: float | None = None) -> None:
        """Ends a trial."""
        self._study.tell(trial, value, self._states[state], skip_if_finished=True)


class Worker:
    """Trains trials in one process, which compiles once for all learning rates."""

    def __init__(
        self, sweep: Sweep, number: int, check_stopped: Callable[[], None]
    ) -> None:
        """Creates a worker.

        Args:
            sweep: what to train.
            number: of the worker among those of the sweep.
            check_stopped: called between chunks of an epoch; raises to stop.
        """
        self.sweep, self.number, self.queue = sweep, number, Queue(sweep)
        self._check_stopped = check_stopped
        self._prepared: tuple[Any, Experiment] | None = None

    def train_next(self) -> bool:
        """Trains the next trial, or resumes it; returns False if none waits."""
        self.check_stopped()
        trial = self.queue.take(self.number)
        if trial is None:
            return False
        sweep = self.sweep
        settings = {axis.name: axis.draw(trial) for axis in sweep.axes}
        trial.set_user_attr("settings", settings)
        try:
            config = make_config(settings, sweep.base)
            check_trainable(settings, config, sweep.dataset, sweep.cores)
        except InputError as error:  # of a combination that was drawn now
            self._end(trial, "FAIL", reason=str(error))
            return True
        # Named without the machine and the versions: trials may run on several.
        [key] = run_keys(config, sweep.dataset, [0]).values()
        folder = sweep.out / RUNS / f"{config.name}-{digest(key)}"
        folders = {seed: folder / f"seed{seed}" for seed in sweep.seeds}
        trial.set_user_attr("folder", folder.name)
        try:
            self._train(trial, config, folders, name_of(settings))
        except import_optuna().TrialPruned:
            self._end(trial, "PRUNED", folders)
        except DivergedError as error:
            self._end(trial, "FAIL", folders, str(error))
        else:
            records = [run for path in folders.values() if (run := read_record(path))]
            accuracy = statistics.fmean(map(validation_accuracy, records))
            self.queue.tell(trial, "COMPLETE", accuracy)
        return True

    def _end(
        self,
        trial: Any,
        state: str,
        folders: Mapping[int, Path] | None = None,
        reason: str = "",
    ) -> None:
        """Ends a trial without records."""
        trial.set_user_attr("reason", reason)
        self.queue.tell(trial, state)
        for path in (folders or {}).values():
            remove_checkpoints(path)

    def check_stopped(self) -> None:
        """Raises if the sweep should end."""
        self._check_stopped()

    def _train(
        self, trial: Any, config: TrainConfig, folders: Mapping[int, Path], name: str
    ) -> None:
        """Trains a trial and reports each epoch to the pruner."""
        dataset, prepare_runs = self.sweep.dataset, self._prepare
        events = train_runs(
            config, dataset, folders, name=name, prepare_runs=prepare_runs
        )
        with contextlib.closing(events):
            for event in events:
                if isinstance(event, Epoch):
                    self._report(trial, event.records, config)
                elif isinstance(event, str) and not self.sweep.quiet:
                    if not event.endswith(("already recorded", "compiling ...")):
                        print(event, flush=True)
                self.check_stopped()

    def _report(
        self, trial: Any, records: Sequence[EpochRecord], config: TrainConfig
    ) -> None:
        """Reports an epoch; raises TrialPruned if the trial should end."""
        accuracies = [r.val_accuracy for r in records if r.val_accuracy is not None]
        epoch = records[0].epoch
        trial.report(statistics.fmean(accuracies), epoch)
        epochs = config.for_dataset(self.sweep.dataset.name).epochs
        if epoch != epochs and trial.should_prune():
            raise import_optuna().TrialPruned

    def _prepare(self, config: TrainConfig, dataset: Dataset, seeds: int) -> Experiment:
        """Reuses the last experiment if only its learning rate differs."""
        key = dataclasses.replace(config, learning_rate=1.0, seed=0), seeds
        if self._prepared is None or self._prepared[0] != key:
            self._prepared = None  # frees its arrays before there are new ones
            self._prepared = key, prepare(config, dataset, seeds)
            return self._prepared[1]
        return change_learning_rate(self._prepared[1], config)


def name_of(settings: Settings) -> str:
    """Returns settings as in `model=mlp learning_rate=0.01`."""
    return " ".join(f"{name}={value}" for name, value in settings.items())


class Progress:
    """Prints a line for each trial that ends."""

    def __init__(self, queue: Queue) -> None:
        """Creates a printer; trials that have ended before are only counted."""
        self._queue, self._began = queue, time.perf_counter()
        self._done = {trial.number for trial in self._ended()}
        self._earlier = len(self._done)

    def _ended(self) -> list[Any]:
        return self._queue.trials("COMPLETE", "PRUNED", "FAIL")

    def show(self) -> None:
        """Prints the trials that have ended since the last call."""
        ended = self._ended()
        if self._queue.sweep.quiet or len(ended) == len(self._done):
            return
        values = [trial.value for trial in ended if trial.value is not None]
        total, best = len(self._queue.trials()), max(values, default=0)
        for trial in ended:
            if trial.number not in self._done:
                self._done.add(trial.number)
                done = len(self._done)
                seconds = (time.perf_counter() - self._began) / (done - self._earlier)
                print(
                    f"{_ending(trial)}; {done}/{total} done, best {best:.4f}, "
                    f"{seconds * (total - done):.0f} s left",
                    flush=True,
                )

    def close(self) -> None:
        """Prints how many trials were trained, and how many had ended before."""
        self.show()
        done, seconds = len(self._done), time.perf_counter() - self._began
        if not self._queue.sweep.quiet:
            print(f"{done - self._earlier} trials trained in {seconds:.1f} s")
            print(f"{self._earlier} of {done} trials had ended before")


def _ending(trial: Any) -> str:
    """Returns how a trial ended."""
    name = name_of(trial.user_attrs.get("settings", {}))
    if trial.state.name == "COMPLETE":
        return f"{name}: validation accuracy {trial.value:.4f}"
    if trial.state.name == "FAIL":
        return f"{name}: failed ({trial.user_attrs['reason']})"
    return f"{name}: pruned {[*trial.intermediate_values.values()][-1]:.4f}"


def repair_journal(out: Path) -> None:
    """Removes from a journal that no process uses what a kill may have left."""
    (out / f"{JOURNAL}.lock").unlink(missing_ok=True)
    if (path := out / JOURNAL).exists():
        content = path.read_bytes()
        write_file(path, content[: content.rfind(b"\n") + 1])
