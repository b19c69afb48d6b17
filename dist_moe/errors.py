"""The exceptions that are shown to a user as a single line, without a traceback, and our one warning."""


class UserError(ValueError):
    """Bad input: the message says what is wrong, where, what was expected, and what to do.

    The command line prints it as `dist-moe: error: ...` and ends with status 2. Anything else keeps its traceback:
    that is a bug.
    """


class LostRankError(RuntimeError):
    """Another process of the job has died, so this one cannot go on. One line, and status 1."""


class UntestedVersionWarning(UserWarning):
    """A library's version is outside the range that all tests passed with."""
