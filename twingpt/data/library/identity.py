"""What a library is known by, read without anything that makes or searches one."""

import contextlib
import sqlite3
from pathlib import Path


def content_of_library(path: Path) -> str | None:
    """The sha256 of its documents that a library was written with; None for one of an older version, or a damaged one.

    Reading it costs nothing, whatever the size of the text: `ask` is quick because it opens an index and reads a few
    pages of it, and a hash of the file would read all of them.
    """
    try:
        with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as db:
            row = db.execute("SELECT value FROM meta WHERE name = 'content'").fetchone()
    except sqlite3.Error:
        return None
    return None if row is None else str(row[0])
