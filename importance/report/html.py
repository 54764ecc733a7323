"""Parts of HTML pages that need nothing but themselves: no network and no scripts."""

from collections.abc import Iterable
from html import escape

from fathom.importance.report.style import STYLE


def document(title: str, mark: str, body: str, *, style: str = "", images: bool = False) -> str:
    """A whole page; ``mark`` says what made it, ``images``: data: URLs may be shown."""
    policy = "default-src 'none'; style-src 'unsafe-inline'" + ("; img-src data:" if images else "")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="generator" content="{mark}">
<title>{escape(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
<main>
{body}</main>
</body>
</html>
"""


def spoken(name: str) -> str:
    """A method's name for a reader, escaped."""
    return escape(name.replace("_", " "))


def table(kind: str, caption: str, head: Iterable[str], rows: Iterable[tuple[str, str]], label: str = "") -> str:
    """A table that scrolls sideways where it is too wide; ``rows`` are (name of the row, its cells as HTML)."""
    columns = "".join(f'<th scope="col">{name}</th>' for name in head)
    body = "\n".join(f'<tr><th scope="row">{name}</th>{cells}</tr>' for name, cells in rows)
    # A region that scrolls must be reachable with the keyboard, and then needs a name.
    return f"""<div class="wide" role="region" tabindex="0" aria-label="{escape(label or caption)}">
<table class="{kind}">
<caption><span>{caption}</span></caption>
<thead><tr>{columns}</tr></thead>
<tbody>
{body}
</tbody>
</table>
</div>
"""


def cells(values: Iterable[str]) -> str:
    """Cells of a table, of text that is HTML already."""
    return "".join(f"<td>{value}</td>" for value in values)


def number(value: float | None, form: str = ".2f") -> str:
    """A number, or a dash where it is not known; never "-0"."""
    if value is None:
        return "–"
    text = format(value, form)
    return text if any(digit in text for digit in "123456789") else format(0.0, form)
