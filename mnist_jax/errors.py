"""The one exception for input that a person can mend."""


class InputError(ValueError):
    """A flag, file or argument is unusable; the message is one full sentence.

    The message says what is wrong, which value was given, what is allowed and what to
    do. Programs print it without a traceback and exit with a status that is not 0.
    """
