"""One writer a run: two at once would delete each other's checkpoints and mix their metrics."""

import contextlib
import fcntl
import os
from pathlib import Path

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import os_reason, tr


class RunLock:
    """Held from creation until `release`, or until the process ends, however it ends.

    The lock is on the folder itself, so that nothing is left behind and nothing can be stale. Raises TwinGPTError if
    another process holds it.
    """

    def __init__(self, run_dir: Path, *, shared: bool = False) -> None:
        """shared: others may look as well, but none may hold it."""
        self._descriptor: int | None = None
        try:
            self._descriptor = os.open(run_dir, os.O_RDONLY)
        except OSError as error:
            raise TwinGPTError(
                tr("{run_dir} cannot be opened: {reason}", run_dir=run_dir, reason=os_reason(error))
            ) from None
        try:
            fcntl.flock(self._descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise TwinGPTError(
                tr(
                    "{run_dir} is being trained by another twingpt: wait for it, stop it, or give another --out",
                    run_dir=run_dir,
                )
            ) from None
        except OSError:
            pass  # some network file systems have no locks

    @classmethod
    def check_free(cls, run_dir: Path) -> None:
        """Raises TwinGPTError if another process trains the run; takes nothing from one that starts meanwhile."""
        if run_dir.is_dir():
            cls(run_dir, shared=True).release()

    def release(self) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        self.release()
