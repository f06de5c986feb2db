"""The error for mistakes of the user; every other exception is a bug and keeps its traceback."""


class UserError(ValueError):
    """A mistake in the input, the configuration or the command. The message says what is wrong, where, and what to do.

    The command line prints the message alone and exits with code 2.
    """
