"""Signals during downloads and training, and where Python drops exceptions."""

import gc
import os
import signal
from collections.abc import Iterator

import pytest

from mnist_jax.cli import signals
from mnist_jax.cli.signals import SIGNALS, interrupt_at_signals, stop_between_chunks
from mnist_jax.errors import Stopped
from mnist_jax.records.files import hold_lock


@pytest.fixture(autouse=True)
def handlers(monkeypatch) -> Iterator[None]:
    """Restores the handlers."""
    monkeypatch.setattr(signals, "_received", [])
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_waiting_for_a_lock_ends_at_a_signal(number, tmp_path):
    interrupt_at_signals()
    with (
        hold_lock(tmp_path / ".lock"),
        pytest.raises(KeyboardInterrupt),
        hold_lock(tmp_path / ".lock", lambda: os.kill(os.getpid(), number)),
    ):
        pass


# Python reports the dropped exception, here to pytest.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_whose_exception_is_dropped_stops_at_the_next_check(number):
    interrupt_at_signals()

    def kill(phase: str, info: dict) -> None:
        gc.callbacks.remove(kill)
        os.kill(os.getpid(), number)

    gc.callbacks.append(kill)
    gc.collect()
    with pytest.raises(Stopped, match="how to resume"):  # noqa: SIM117
        with stop_between_chunks("how to resume") as check_stopped:
            check_stopped()


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_deferred_and_the_second_is_not(number):
    with stop_between_chunks("") as check_stopped:
        check_stopped()
        os.kill(os.getpid(), number)
        assert {signal.getsignal(each) for each in SIGNALS} == {signal.SIG_DFL}
        with pytest.raises(Stopped) as stopped:
            check_stopped()
        assert stopped.value.number == number
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
