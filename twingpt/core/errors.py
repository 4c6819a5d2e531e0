"""Errors that the person at the keyboard can cause, each of one clear line."""

from twingpt.core.language import tr


class TwinGPTError(Exception):
    """What was wrong, where, and what to do, in one line. The command line prints it without a traceback.

    command_line: what only somebody at the command line can do about it, such as an option. It ends the line there, and
    is left out of `problem`, which is what a client of the server reads.
    """

    exit_code = 1

    def __init__(self, problem: str, *, command_line: str = "") -> None:
        super().__init__(problem + command_line)
        self.problem = problem


class UsageError(TwinGPTError):
    """An option, a name or a setting was given that twingpt cannot use."""

    exit_code = 2


class NotFiniteError(TwinGPTError):
    """Weights or moments are NaN or infinite. Such a state is neither saved nor used: nothing can go on from it.

    key: of the first tensor that holds such a number.
    """

    def __init__(self, where: str, key: str) -> None:
        super().__init__(
            tr(
                "{where} is of no use: {key} holds numbers that are not finite, as its training diverged",
                where=where,
                key=key,
            )
        )
        self.key = key


class OutOfMemoryError(TwinGPTError):
    """The device, or the machine, had no memory left for an engine.

    retry: the process is sound and no update had begun, so that the same step can be tried again in smaller pieces.
    """

    def __init__(self, reason: str, *, retry: bool) -> None:
        super().__init__(tr("out of memory: {reason}", reason=reason))
        self.retry = retry


class RestartError(TwinGPTError):
    """Out of memory in a way that only a fresh process survives: go on there from the last checkpoint.

    micro_batch: what the fresh process should take at a time.
    """

    def __init__(self, problem: str, micro_batch: int) -> None:
        super().__init__(
            tr("{problem}: go on with --resume --micro-batch {micro_batch}", problem=problem, micro_batch=micro_batch)
        )
        self.micro_batch = micro_batch


class StoppedError(Exception):
    """Ended early by a signal, in good order; exit_code is 128 + the signal's number."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


class PromptTooLongError(TwinGPTError):
    """What is given to the model leaves no room for an answer; cutting it would lose the question."""


class GrammarError(TwinGPTError):
    """A grammar, schema or pattern that cannot be used, or a text that does not follow one."""


class PeerLostError(TwinGPTError):
    """One of several ranks is gone, so that the others cannot go on."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            tr(
                "another rank of this run is gone ({reason}): see what it said, then start all of them again with "
                "--resume",
                reason=reason,
            )
        )
