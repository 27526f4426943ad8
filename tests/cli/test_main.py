"""Tests of the signals that stop a program."""

import os
import signal
from collections.abc import Iterator

import pytest

from mnist_jax.cli.main import SIGNALS, stop_between_chunks
from mnist_jax.errors import Stopped
from mnist_jax.records.files import hold_lock


@pytest.fixture
def handlers() -> Iterator[None]:
    """Checks that the handlers are restored."""
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert before == [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize("number", SIGNALS)
def test_waiting_for_a_lock_ends_at_a_signal(number, tmp_path, handlers):
    with (
        hold_lock(tmp_path / ".lock"),
        pytest.raises(Stopped, match="how to resume"),
        stop_between_chunks("how to resume") as check_stopped,
        hold_lock(
            tmp_path / ".lock", lambda: os.kill(os.getpid(), number), check_stopped
        ),
    ):
        pass


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_deferred_and_the_second_is_not(number, handlers):
    with stop_between_chunks("") as check_stopped:
        check_stopped()
        os.kill(os.getpid(), number)
        assert {signal.getsignal(each) for each in SIGNALS} == {signal.SIG_DFL}
        with pytest.raises(Stopped) as stopped:
            check_stopped()
        assert stopped.value.number == number
