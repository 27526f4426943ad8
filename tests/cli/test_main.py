"""Tests of the signals that stop a program."""

import os
import signal
from collections.abc import Iterator

import pytest

from mnist_jax.cli.main import SIGNALS, stop_between_chunks
from mnist_jax.errors import Stopped


@pytest.fixture
def handlers() -> Iterator[None]:
    """Checks that the handlers are restored."""
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert before == [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_deferred_and_the_second_is_not(number, handlers):
    with stop_between_chunks("") as check_stopped:
        check_stopped()
        os.kill(os.getpid(), number)
        assert {signal.getsignal(each) for each in SIGNALS} == {signal.SIG_DFL}
        with pytest.raises(Stopped) as stopped:
            check_stopped()
        assert stopped.value.number == number
