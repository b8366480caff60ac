"""Parts of what is printed: headings, tables, lists."""

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text


def heading(text: str) -> Text:
    """Return a heading with a blank line above it."""
    return Text(f"\n{text}", style="bold")


def grid(*columns: str, words: int) -> Table:
    """Return a table whose first columns hold words, set left, and the others figures."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < words else "right", overflow="fold")
    return table


def listed(values: Sequence[Any]) -> str:
    """Return values with commas between them."""
    return ", ".join(map(str, values))
