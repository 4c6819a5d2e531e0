"""Lines of program code in a text: they are kept to be found and read, but are no sentences."""

CODE = "│ "
"""Begins each line of code. A fence around several lines would be lost where a document is cut between them."""


def is_code(line: str) -> bool:
    return line.startswith(CODE.rstrip())
