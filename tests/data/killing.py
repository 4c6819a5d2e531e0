"""A process that dies between two of its file operations, at each of them in turn."""

import subprocess
import sys
from collections.abc import Sequence

_COUNTED = """
import os, sys
from pathlib import Path
left, names = int(sys.argv[1]), sys.argv[2].split(",")
del sys.argv[1:3]
def counted(original):
    def call(*args, **kwargs):
        global left
        if left == 0:
            os._exit(9)
        left -= 1
        return original(*args, **kwargs)
    return call
def count_from_here():
    for name in names:
        setattr(Path, name, counted(getattr(Path, name)))
    os.fsync = counted(os.fsync)
"""


def killed_at(operation: int, names: Sequence[str], program: str, *arguments: str) -> bool:
    """Run a program that calls count_from_here(), up to its file operation of that number; whether it came so far.

    names: methods of Path that count as one, beside os.fsync. The program finds the arguments in sys.argv[1:].
    """
    command = [sys.executable, "-c", _COUNTED + program, str(operation), ",".join(names), *arguments]
    code = subprocess.run(command, check=False).returncode
    assert code in (0, 9)
    return code == 9
