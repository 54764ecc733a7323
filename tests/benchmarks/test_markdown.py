"""Tables of the documents: one line per row, one cell per column, nothing without rows."""

from fathom.benchmarks.markdown import paragraphs, table, table_of


def test_a_column_is_a_head_and_a_format_of_the_rows_keys() -> None:
    rows = [{"depth": 4, "ms": {"gpu": 1.25}}, {"depth": 16, "ms": {"gpu": 1234.5}}]
    assert table_of(rows, "depth={depth} | GPU ms={ms[gpu]:,.1f}").splitlines() == [
        "| depth | GPU ms |",
        "| --- | --- |",
        "| 4 | 1.2 |",
        "| 16 | 1,234.5 |",
    ]


def test_a_cell_knows_the_figures_of_the_page_and_leaves_empty_what_was_not_measured() -> None:
    figure = {"value": 0.25, "low": 0.2, "high": 0.5}
    row = {"ndcg@10": figure, "gap": -0.00001, "lost": [figure, figure], "missing": None, "depths": [4, 16]}
    columns = "a={ndcg@10:interval} | b={gap:+decimal} | c={lost:+percent} | d={missing:.2f} | e={depths}"
    *_, cells = table_of([row], columns).splitlines()
    lost = "+25.0 [+20.0, +50.0]"
    assert cells == f"| .2500 [.2000, .5000] | +.0000 | {lost}, {lost} |  | 4, 16 |"


def test_a_table_without_rows_and_an_empty_part_leave_no_trace() -> None:
    assert table(["depth"], []) == table_of([], "depth={depth}") == ""
    assert paragraphs("## Title", table(["depth"], []), "text") == "## Title\n\ntext"
