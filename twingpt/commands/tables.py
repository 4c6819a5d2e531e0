"""Tables of figures for a person to read."""

from typing import Any

from twingpt.core.language import mark, tr

FIGURES = (
    mark("checkpoint"),
    mark("backend"),
    mark("perplexity"),
    mark("bits_per_byte"),
    mark("text_bytes"),
    mark("answers"),
    mark("in_order"),
    mark("all_sections"),
    mark("finished"),
    mark("summary_rouge_l"),
    mark("contact_precision"),
    mark("contact_recall"),
    mark("contacts_wanted"),
    mark("numbers"),
    mark("invented_numbers"),
    mark("invented_share"),
    mark("repeated_4grams"),
)
"""Names of figures, as `--json` has them too; a table shows them in the reader's language."""


def print_table(title: str, rows: dict[str, Any]) -> None:
    """Names and their values, a line each."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, show_header=False)
    for name, value in rows.items():
        table.add_row(tr(name), _shown(value))
    Console().print(table)


def print_columns(title: str, columns: dict[str, dict[str, Any]]) -> None:
    """One column for each dictionary, whose names are the same in all."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", *map(tr, columns), title=title)
    for name in next(iter(columns.values())):
        table.add_row(tr(name), *(_shown(column[name]) for column in columns.values()))
    Console().print(table)


def _shown(value: object) -> str:
    return "-" if value is None else f"{value:,.4f}" if isinstance(value, float) else f"{value}"
