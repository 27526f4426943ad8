"""The state of a sweep in the process that directs it."""

import statistics
from collections.abc import Callable
from pathlib import Path

from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Dataset
from mnist_jax.errors import InputError
from mnist_jax.training.run_dir import read_records
from mnist_jax.training.trials import (
    FAILED,
    FINISHED,
    STARTED,
    Trial,
    TrialResult,
    find_trials,
    read_curve,
    trial_folder,
    validation_accuracy,
    write_trial,
)

from .progress import Progress
from .search import ListSearch, Pruner, Settings, TpeSearch


class Sweep:
    """What to train next, what runs, and what has ended."""

    def __init__(
        self,
        out: Path,
        dataset: Dataset,
        seeds: range,
        search: ListSearch | TpeSearch,
        make_config: Callable[[Settings], TrainConfig],
        pruner: Pruner | None,
        progress: Progress,
    ) -> None:
        """Reads the trials that the folder of the sweep holds.

        Args:
            out: that folder.
            dataset: as returned by `load_dataset`.
            seeds: of every trial, trained together.
            search: chooses the settings.
            make_config: returns the config of a setting.
            pruner: stops trials; None for none.
            progress: prints what happens.

        Raises:
            InputError: the trials there were trained on other data.
        """
        self.out, self.dataset, self.seeds = out, dataset, seeds
        self.progress, self.pruner = progress, pruner
        self._search, self._make_config = search, make_config
        self._seen: set[Path] = set()
        known = find_trials(out)
        for record in known.values():
            if record.checksum != dataset.checksum:
                raise InputError(
                    f"--out={out} holds trials on other data than {dataset.name} "
                    f"(sha256 {record.checksum}, now {dataset.checksum}), whose "
                    "accuracies do not compare; give another --out"
                )
        self._states = {
            folder: record.state
            for folder, record in known.items()
            if set(record.seeds) >= set(seeds)
        }
        self._waiting: list[Settings] = []
        if isinstance(search, TpeSearch):
            for record in known.values():
                if search.adopt(record.settings):
                    self._waiting.append(record.settings)
        progress.start(search.total)

    def next(self) -> Trial | None:
        """Returns the next trial to train, or None if there is none."""
        while True:
            settings = self._waiting.pop(0) if self._waiting else self._search.next()
            if settings is None:
                return None
            try:
                config = self._make_config(settings)
            except InputError as error:  # of a combination that TPE has drawn now
                self.progress.left_out(str(error))
                self._search.tell(settings, FAILED, None, 0)
                continue
            folder = trial_folder(self.out, config, self.dataset)
            checksum = self.dataset.checksum
            trial = Trial(settings, config, folder, self.seeds, checksum)
            if folder in self._seen:
                self.progress.left_out(f"{trial.name}: the same as an earlier trial")
                continue
            self._seen.add(folder)
            self._replay(trial)
            state = self._states.get(folder, STARTED)
            if set(read_records(trial.folders)) == set(self.seeds):
                if state == STARTED:  # the driver was killed before it wrote the state
                    write_trial(trial, FINISHED)
                state = FINISHED
            if state == STARTED:
                write_trial(trial)
                self.progress.started(trial)
                return trial
            self._end(trial, TrialResult(state), trained=False)

    def on_epoch(self, trial: Trial, epoch: int, accuracy: float) -> bool:
        """Receives a trial's validation accuracy; returns whether to stop it."""
        self.progress.on_epoch(trial, epoch, accuracy)
        if self.pruner is None:
            return False
        return self.pruner.report(trial.folder.name, epoch, accuracy)

    def on_end(self, trial: Trial, result: TrialResult) -> None:
        """Receives how a trial that was trained ended."""
        write_trial(trial, *result)
        self._end(trial, result, trained=True)

    def _end(self, trial: Trial, result: TrialResult, trained: bool) -> None:
        curve = read_curve(trial.folders)
        accuracy = curve[-1] if curve else None
        if result.state == FINISHED:
            records = read_records(trial.folders).values()
            accuracy = statistics.fmean(map(validation_accuracy, records))
        self._search.tell(dict(trial.settings), result.state, accuracy, len(curve))
        self.progress.ended(trial, result, accuracy, trained)

    def _replay(self, trial: Trial) -> None:
        """Reports the epochs of earlier starts to the pruner."""
        if self.pruner is None:
            return
        for epoch, accuracy in enumerate(read_curve(trial.folders), start=1):
            self.pruner.report(trial.folder.name, epoch, accuracy)
