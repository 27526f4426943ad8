"""Prints the progress of a sweep over all its trials."""

import sys
import time
from typing import Any

from tqdm import tqdm

from mnist_jax.training.trials import FINISHED, Trial, TrialResult


class Progress:
    """Prints a line for each trial that ends; on a terminal also a bar."""

    def __init__(self, quiet: bool = False) -> None:
        """Creates a printer; `quiet` prints nothing."""
        self._quiet = quiet
        self._total = self._done = self._trained = 0
        self._running: dict[str, str] = {}
        self._best: tuple[float, str] | None = None
        self._began = time.perf_counter()
        self._bar = tqdm(disable=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: Any) -> None:
        """Removes the bar and prints how many trials had ended before."""
        self._bar.close()
        seconds = time.perf_counter() - self._began
        if self._trained:
            self.note(f"{self._trained} trials trained in {seconds:.1f} s")
        if earlier := self._done - self._trained:
            self.note(f"{earlier} of {self._done} trials had ended before")

    def start(self, total: int) -> None:
        """Called before the first trial, with the number of all."""
        self._total = total
        # disable=None shows the bar on a terminal only.
        hidden = self._quiet or sys.stderr is None
        self._bar = tqdm(
            total=total, disable=True if hidden else None, leave=False, unit="trial"
        )

    def note(self, message: str) -> None:
        """Prints a message."""
        if not self._quiet:
            tqdm.write(message, file=sys.stdout)
            sys.stdout.flush()

    def started(self, trial: Trial) -> None:
        """Called when a trial starts."""
        self._running[trial.name] = "starting"
        self._show()

    def on_epoch(self, trial: Trial, epoch: int, accuracy: float) -> None:
        """Called after each epoch of a trial."""
        self._running[trial.name] = f"epoch {epoch}: {accuracy:.4f}"
        self._show()

    def left_out(self, reason: str) -> None:
        """Called for settings that are not trained."""
        self._total -= 1
        self._bar.total = self._total
        self.note(f"{reason}, left out")

    def ended(
        self, trial: Trial, result: TrialResult, accuracy: float | None, trained: bool
    ) -> None:
        """Called when a trial ends, or had ended before the sweep was started."""
        self._running.pop(trial.name, None)
        self._done += 1
        self._trained += trained
        self._bar.update()
        found = "" if accuracy is None else f" {accuracy:.4f}"
        if result.state == FINISHED and accuracy is not None:
            found = f": validation accuracy{found}"
            if self._best is None or accuracy > self._best[0]:
                self._best = accuracy, trial.name
        reason = f" ({result.reason})" if result.reason else ""
        if trained:
            state = "" if result.state == FINISHED else f": {result.state}"
            self.note(f"{trial.name}{state}{found}{reason}; {self.summary()}")
        self._show()

    def summary(self) -> str:
        """Returns how many trials are done and run, the best, and the time left."""
        words = [f"{self._done}/{self._total} done"]
        if self._running:
            words.append(f"{len(self._running)} running")
        if self._best is not None:
            words.append(f"best {self._best[0]:.4f} ({self._best[1]})")
        if self._trained and self._done < self._total:
            seconds = (time.perf_counter() - self._began) / self._trained
            words.append(f"{seconds * (self._total - self._done):.0f} s left")
        return ", ".join(words)

    def _show(self) -> None:
        if not self._bar.disable:
            self._bar.set_postfix_str(self.summary())
