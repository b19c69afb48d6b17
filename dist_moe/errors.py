"""The one exception that is shown to a user as a single line, without a traceback."""


class UserError(ValueError):
    """Bad input: the message says what is wrong, where, what was expected, and what to do.

    The command line prints it as `dist-moe: error: ...` and ends with status 2. Anything else keeps its traceback:
    that is a bug.
    """
