"""Chooses what a sweep trains next, and which trials it stops, by validation accuracy.

Optuna samples and prunes. Its studies are in memory: what they know is read from the
trials' folders when a sweep starts.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

from mnist_jax.records.environment import check_packages
from mnist_jax.training.trials import PRUNED

from .space import Axis, Settings, as_value


def import_optuna(flag: str) -> ModuleType:
    """Returns Optuna, silenced; raises InputError if it is not installed."""
    check_packages(flag, ["optuna"], "sweep")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def sample(axes: Sequence[Axis], samples: int, seed: int) -> list[Settings]:
    """Draws settings independently: the same for the same seed."""
    optuna = import_optuna("--samples")
    sampler = optuna.samplers.RandomSampler(seed=seed)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    distributions = _distributions(axes)
    return [_settings(study.ask(distributions), axes) for _ in range(samples)]


class ListSearch:
    """Trains a list of settings in order."""

    def __init__(self, settings: Sequence[Settings]) -> None:
        self._next = iter(settings)
        self.total = len(settings)

    def next(self) -> Settings | None:
        """Returns the next settings, or None after the last."""
        return next(self._next, None)

    def tell(
        self, settings: Settings, state: str, accuracy: float | None, epoch: int
    ) -> None:
        """Receives how a trial ended."""


class TpeSearch:
    """Samples settings near those with a high validation accuracy, by Optuna's TPE."""

    def __init__(self, axes: Sequence[Axis], samples: int, seed: int) -> None:
        """Creates a search.

        Args:
            axes: what varies.
            samples: number of settings.
            seed: of the sampler.
        """
        self._optuna = import_optuna("--search=tpe")
        sampler = self._optuna.samplers.TPESampler(seed=seed)
        self._study = self._optuna.create_study(direction="maximize", sampler=sampler)
        self._axes, self.total = axes, samples
        self._trials: dict[tuple[str, ...], Any] = {}
        self._asked = 0

    def adopt(self, settings: Settings) -> bool:
        """Counts a trial of an earlier start; returns whether it is of this space."""
        params = _params(settings, self._axes)
        if params is None or self._asked >= self.total:
            return False
        self._study.enqueue_trial(params)
        return self.next() is not None

    def next(self) -> Settings | None:
        """Returns the next settings, or None after the last."""
        if self._asked >= self.total:
            return None
        self._asked += 1
        trial = self._study.ask(_distributions(self._axes))
        settings = _settings(trial, self._axes)
        self._trials[tuple(settings.values())] = trial
        return settings

    def tell(
        self, settings: Settings, state: str, accuracy: float | None, epoch: int
    ) -> None:
        """Receives how a trial ended: its validation accuracy and last epoch."""
        trial = self._trials.pop(tuple(settings.values()), None)
        states = self._optuna.trial.TrialState
        if trial is None:
            return
        if accuracy is None:
            self._study.tell(trial, state=states.FAIL)
        elif state == PRUNED:
            trial.report(accuracy, epoch)
            self._study.tell(trial, state=states.PRUNED)
        else:
            self._study.tell(trial, accuracy)


class Pruner:
    """Stops trials by asynchronous successive halving (ASHA), as Optuna does it.

    After 1, 2, 4, ... times `min_epochs` epochs a trial goes on if it is in the better
    half of those that have reached that epoch so far.
    """

    def __init__(self, min_epochs: int, factor: int) -> None:
        """Creates a pruner.

        Args:
            min_epochs: epochs before the first decision.
            factor: 3 instead of 2 keeps a third, after 1, 3, 9, ... `min_epochs`.
        """
        optuna = import_optuna("--prune")
        self._study = optuna.create_study(
            direction="maximize",
            pruner=optuna.pruners.SuccessiveHalvingPruner(
                min_resource=min_epochs, reduction_factor=factor
            ),
        )
        self._trials: dict[str, Any] = {}
        self._answers: dict[str, tuple[int, bool]] = {}

    def report(self, name: str, epoch: int, accuracy: float) -> bool:
        """Receives the accuracy after an epoch; returns whether to stop the trial.

        An epoch that was reported before changes nothing: the answer is the same.
        """
        if name not in self._trials:
            self._trials[name] = self._study.ask()
        last, stop = self._answers.get(name, (0, False))
        if epoch > last:
            self._trials[name].report(accuracy, epoch)
            stop = bool(self._trials[name].should_prune())
            self._answers[name] = epoch, stop
        return stop and epoch >= last


def _distributions(axes: Sequence[Axis]) -> dict[str, Any]:
    """Returns Optuna's distribution of each axis that has more than one value."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    found: dict[str, Any] = {}
    for axis in axes:
        if axis.range is None:
            found[axis.name] = CategoricalDistribution(tuple(axis.values))
        elif axis.range.whole:
            ends = round(axis.range.low), round(axis.range.high)
            found[axis.name] = IntDistribution(*ends, log=axis.range.log)
        else:
            low, high, log, _ = axis.range
            found[axis.name] = FloatDistribution(low, high, log=log)
    return found


def _settings(trial: Any, axes: Sequence[Axis]) -> Settings:
    """Returns the settings of an Optuna trial."""
    return {
        axis.name: trial.params[axis.name]
        if axis.range is None
        else as_value(trial.params[axis.name], axis.range)
        for axis in axes
    }


def _params(settings: Settings, axes: Sequence[Axis]) -> dict[str, Any] | None:
    """Returns Optuna's parameters of settings, or None if they are of another space."""
    if set(settings) != {axis.name for axis in axes}:
        return None
    params: dict[str, Any] = {}
    for axis in axes:
        text = settings[axis.name]
        if axis.range is None:
            if text not in axis.values:
                return None
            params[axis.name] = text
            continue
        try:
            number = float(text)
        except ValueError:
            return None
        if not axis.range.low <= number <= axis.range.high:
            return None
        params[axis.name] = round(number) if axis.range.whole else number
    return params
