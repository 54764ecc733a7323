"""Tables of the documents: one line per row, one cell per column, nothing without rows."""

from fathom.benchmarks.markdown import paragraphs, table, table_of


def test_a_column_is_a_format_of_the_rows_keys_or_a_function_of_the_row() -> None:
    rows = [{"depth": 4, "ms": {"gpu": 1.25}}, {"depth": 16, "ms": {"gpu": 1234.5}}]
    shown = table_of(rows, {"depth": "{depth}", "GPU ms": "{ms[gpu]:,.1f}", "twice": lambda row: str(2 * row["depth"])})
    assert shown.splitlines() == [
        "| depth | GPU ms | twice |",
        "| --- | --- | --- |",
        "| 4 | 1.2 | 8 |",
        "| 16 | 1,234.5 | 32 |",
    ]


def test_a_table_without_rows_and_an_empty_part_leave_no_trace() -> None:
    assert table(["depth"], []) == table_of([], {"depth": "{depth}"}) == ""
    assert paragraphs("## Title", table(["depth"], []), "text") == "## Title\n\ntext"
