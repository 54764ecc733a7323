"""The leaderboard says first where Fathom loses, and tells no more than rows do."""

from collections.abc import Iterator
from pathlib import Path
from statistics import median

from fathom.benchmarks.leaderboard import Row, Source, figure, leaderboard, page
from fathom.benchmarks.leaderboard_sources import SOURCES, higher, lower, of_run
from fathom.benchmarks.record import load_run, save_run
from fathom.benchmarks.registry import StoredRun

ROOT = Path(__file__).parents[2]


def test_rows_of_one_measure_and_depth_are_a_board_and_the_best_of_the_others_counts() -> None:
    rows = [
        higher("Fathom", 4, "requests/s", 10, (9, 11)),
        higher("other", 4, "requests/s", 14, (13, 15)),
        higher("worst", 4, "requests/s", 2),
        higher("echo", 4, "requests/s", 99)._replace(bound=True),
        lower("Fathom", 4, "ms", 1.0),
        lower("other", 4, "ms", 2.0),
        lower("Fathom", 16, "ms", 3.0, (2.0, 4.0)),
        lower("other", 16, "ms", 3.9),
        lower("Fathom", None, "alone", 1),
    ]
    boards = leaderboard(rows)
    assert [board.name for board in boards] == ["requests/s, depth 4", "ms, depth 4", "ms, depth 16", "alone"]
    assert [row.system for row in boards[0].ranked] == ["echo", "other", "Fathom", "worst"]
    verdicts = [board.compared for board in boards]
    assert [found and (found[0], found[2].system) for found in verdicts] == [
        ("loses", "other"),
        ("leads", "other"),
        ("level", "other"),
        None,
    ]


def test_the_first_of_fathoms_rows_is_the_one_that_is_compared() -> None:
    rows = [higher("Fathom", None, "x", 1), higher("Fathom, faster", None, "x", 9), higher("other", None, "x", 5)]
    found = leaderboard(rows)[0].compared
    assert found is not None
    assert found[0] == "loses"


def of_two(run: StoredRun) -> Iterator[Row]:
    for system, value in run["result"].items():
        yield higher(system, None, "points", value)


def test_a_page_says_losses_first_then_what_is_missing(tmp_path: Path) -> None:
    save_run("one", config={"turns": 3}, result={"Fathom": 1.0, "other": 250.0}, folder=tmp_path)
    sources: list[Source] = [
        of_run("One", "one", of_two, "Medians of {turns} turns.", lambda _: "Without a third."),
        of_run("Two", "two", of_two, "Never."),
    ]
    text = page(tmp_path, sources)
    assert text.index("## Where Fathom loses") < text.index("| One | points | other 250 | **Fathom** 1 |")
    assert text.index("- One: Without a third.") < text.index("- Two: not measured yet (two.json is missing).")
    assert "## One\n\nMedians of 3 turns.\n\n| measure | system and value |" in text
    assert "Never." not in text
    assert text.count("Nowhere in what was measured.") == 2


def test_every_source_that_is_stored_has_boards_in_which_fathom_stands() -> None:
    folder = ROOT / "results"
    for source in SOURCES:
        if (folder / source.stored).exists():
            boards = leaderboard(source.rows(folder))
            assert boards, source.title
            assert all(any(row.is_fathom for row in board.rows) for board in boards), source.title
            assert source.about(folder)


def test_what_was_not_measured_on_a_data_set_is_named() -> None:
    (alone,) = (source for source in SOURCES if source.stored == "quality/")
    assert "RecTools HSTU" in alone.skipped(ROOT / "results")


def test_the_leaderboard_of_the_peers_is_that_of_their_run() -> None:
    run = load_run(ROOT / "results" / "peers.json")
    (peers,) = (source for source in SOURCES if source.stored == "peers.json")
    busy = next(row for row in peers.rows(ROOT / "results") if row.is_fathom and row.depth == 4)
    assert busy.value == median(t["fathom"]["closed"]["4"]["busy"]["requests_per_s"] for t in run["result"]["turns"])


def test_figures_have_three_digits() -> None:
    assert [figure(value) for value in (4_234.4, 12.34, 1.234, 0.1286)] == ["4,234", "12.3", "1.23", ".1286"]
