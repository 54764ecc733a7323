"""The best runs of a task as one HTML page."""

from collections.abc import Sequence
from html import escape

from fathom.artefacts import LEADERBOARD_PAGE
from fathom.importance.report.html import cells, document, table


def leaderboard_page(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The page; of each row the first cell is its place. Equal input, equal text."""
    body = [(escape(place), cells(map(escape, others))) for place, *others in rows]
    shown = table("plain", "Each model and data set by its best run", ["", *map(escape, head)], body)
    return document(title, LEADERBOARD_PAGE.mark, f"<h1>{escape(title)}</h1>\n{shown}")
