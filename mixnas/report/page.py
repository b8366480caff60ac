"""A page that needs no other file; nothing but its own text reaches HTML unescaped."""

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from mixnas.run import Run

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 } th { text-align: left }
td, th { padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #ddd; vertical-align: top }
td.figure, th.figure { text-align: right; font-variant-numeric: tabular-nums }
img { max-width: 100% } pre { background: #f4f4f4; padding: 1rem; overflow-x: auto }
"""


def page(title: str, sections: Iterable[str]) -> str:
    """Return a whole page of sections that are HTML already."""
    body = "\n".join(sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def pairs(rows: Iterable[tuple[str, str]]) -> str:
    """Return a table of labels and texts."""
    cells = (f"<tr><th>{escape(a)}</th><td>{escape(b)}</td></tr>" for a, b in rows)
    return f"<table>{''.join(cells)}</table>"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], figures: bool = False) -> str:
    """Return a table with heads; `figures` sets its cells right."""
    kind = ' class="figure"' if figures else ""
    head = "".join(f"<th{kind}>{escape(text)}</th>" for text in heads)
    body = (
        "".join(("<tr>", *(f"<td{kind}>{escape(text)}</td>" for text in row), "</tr>"))
        for row in rows
    )
    return f"<table><tr>{head}</tr>{''.join(body)}</table>"


def image(run: Run, name: str, alternative: str) -> str:
    """Return a figure inside the page, or nothing if it has not been drawn."""
    path = run.file(name)
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<p><img alt="{escape(alternative)}" src="data:image/png;base64,{data}"></p>'


def made_with(run: Run) -> Iterator[tuple[str, str]]:
    """Yield when, on what and with which versions a run was made."""
    for name in ("made", "device", "git"):
        yield name, str(run.made.get(name) or "-")
    yield from ((name, str(number)) for name, number in run.made.get("versions", {}).items())


def flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested plain data as labels and texts; what was not set is left out."""
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}, ")
        elif isinstance(value, list):
            yield f"{prefix}{key}", ", ".join(map(str, value))
        elif value is not None:
            yield f"{prefix}{key}", f"{value:.4g}" if isinstance(value, float) else f"{value}"
