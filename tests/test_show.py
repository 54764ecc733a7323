"""Tables keep every heading and every cell, however narrow the terminal is."""

import re
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fathom import show

WORD = st.text("abcdefghij", min_size=1, max_size=12)
TEXT = st.lists(WORD, max_size=6).map(" ".join)
NUMBER = st.floats(-2, 2, allow_nan=False)
FIGURE = st.one_of(
    st.integers(0, 10**6).map("{:,}".format),
    st.integers(0, 9_999).map("{} MB".format),
    st.tuples(NUMBER, NUMBER, NUMBER).map(lambda three: "{:+.4f} [{:+.4f}, {:+.4f}]".format(*three)),
    st.tuples(NUMBER, NUMBER, NUMBER).map(lambda three: "{:.4f}\n{:+.4f} [{:+.4f}]".format(*three)),
)


@st.composite
def tables(draw: st.DrawFn) -> list[list[str]]:
    """A header, and rows that have names and then cells of one kind for each column."""
    kinds = [st.sampled_from(["a", "bc", "def ghi"]), *draw(st.lists(st.sampled_from([TEXT, FIGURE]), max_size=20))]
    rows = draw(st.integers(0, 4))
    columns = [[draw(TEXT.filter(bool)), *(draw(kind) for _ in range(rows))] for kind in kinds]
    return [list(row) for row in zip(*columns, strict=True)]


def printed(rows: list[list[str]], width: int) -> list[str]:
    """The lines of a table on a terminal of this width."""
    with pytest.MonkeyPatch.context() as patch:
        console = Console(width=width, record=True, file=StringIO())
        patch.setattr(show, "out", console)
        show.table("", rows)
        return console.export_text().splitlines()


def words(cells: list[str]) -> list[str]:
    return sorted(word for cell in cells for word in cell.split())


@given(rows=tables(), width=st.sampled_from([60, 80, 120, 132]))
def test_nothing_of_a_table_is_cut_off_at_any_width(rows: list[list[str]], width: int) -> None:
    lines = printed(rows, width)
    assert max(map(len, lines)) <= width
    parts = sum(bool(re.fullmatch(" ─+ ", line)) for line in lines)
    first, others = [row[0] for row in rows], [cell for row in rows for cell in row[1:]]
    found = [word for line in lines if "─" not in line for word in line.split()]
    assert sorted(found) == words(first * parts + others)


@given(rows=tables(), width=st.sampled_from([60, 80, 120, 132]))
def test_a_figure_stays_on_the_line_of_its_unit_and_its_interval(rows: list[list[str]], width: int) -> None:
    text = "\n".join(printed(rows, width))
    for cell in (cell for row in rows[1:] for cell in row[1:] if not cell[:1].isalpha()):
        assert all(line in text for line in cell.split("\n"))


@given(st.text("x", min_size=1, max_size=300), st.integers(20, 80))
def test_a_word_that_is_wider_than_the_terminal_goes_on_in_the_next_line(word: str, width: int) -> None:
    lines = printed([["name", "value"], ["a", word]], width)
    assert max(map(len, lines)) <= width
    assert sum(line.count("x") for line in lines) == len(word)
