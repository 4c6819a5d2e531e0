"""Errors that the person at the keyboard can cause, each of one clear line."""


class TwinGPTError(Exception):
    """What was wrong, where, and what to do, in one line. The command line prints it without a traceback."""

    exit_code = 1


class UsageError(TwinGPTError):
    """An option, a name or a setting that cannot be meant."""

    exit_code = 2


class StoppedError(Exception):
    """Ended early by a signal, in good order; exit_code is 128 + the signal's number."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code
