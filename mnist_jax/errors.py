"""Exceptions that end a program with a message instead of a traceback."""


class InputError(ValueError):
    """A flag, file or argument is invalid; the message is one full sentence.

    The message states what is wrong, the value given, what is allowed and what to do.
    Programs print it without a traceback and exit with a nonzero status.
    """


class Stopped(Exception):
    """The program got a signal to stop, and has reached a point where it can."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number
