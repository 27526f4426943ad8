"""The exceptions that end a program with a sentence and not a traceback."""


class InputError(ValueError):
    """A flag, file or argument is unusable; the message is one full sentence.

    The message says what is wrong, which value was given, what is allowed and what to
    do. Programs print it without a traceback and exit with a status that is not 0.
    """


class Stopped(Exception):
    """The user or the system asked the program to end, and it has come to a good place.

    Args:
        number: of the signal.
        message: what becomes of the work so far.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number
