"""What the commands show on a terminal: progress on stderr, results on stdout."""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from fathom.importance.lattice.lattice import LatticeProgress
    from fathom.importance.rank import RankProgress
    from fathom.training.train import TrainProgress

PLAIN_EVERY_S = 5.0
OF_BUILD = "left of the whole build"

PLAIN_WIDTH = 132  # of files and pipes, which have no width of their own
EDGES = 2  # columns that a table's frame takes
FIGURE = re.compile(r"[-+]?\.?\d.{0,24}$", re.MULTILINE)

out = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
err = Console(stderr=True, width=None if sys.stderr.isatty() else PLAIN_WIDTH)


class TimeLeft(Protocol):
    """How many seconds a whole build still takes; None while that is unknown."""

    def in_stage(self, elapsed_s: float) -> float | None:
        """So many seconds into the current stage."""

    def in_training(self, progress: "TrainProgress") -> float | None:
        """After a batch of training."""


class Activity:
    """One long step: a live line on a terminal; elsewhere plain lines, at most one every few seconds.

    ``with Activity("train") as activity: ...`` ends with a line that says how long it took. ``remaining``: of the build
    that it is a stage of.
    """

    def __init__(self, title: str, remaining: TimeLeft | None = None) -> None:
        self.title = title
        self._remaining = remaining
        self._live = err.is_terminal
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[detail]}"),
        )
        self._bar = Progress(*columns, console=err, transient=True, disable=not self._live)
        self._task = self._bar.add_task(title, total=None, detail="")
        self._start = self._printed = time.monotonic()

    def update(self, detail: str, done: float | None = None) -> None:
        """Show where the step stands; ``done`` is a share from 0 to 1, None when that is unknown."""
        left = None if self._remaining is None else self._remaining.in_stage(time.monotonic() - self._start)
        self._show(detail if left is None else f"{detail}, about {_duration(left)} {OF_BUILD}", done)

    def _show(self, detail: str, done: float | None) -> None:
        if self._live:
            total = None if done is None else 1.0
            self._bar.update(self._task, detail=detail, total=total, completed=done or 0.0)
        elif time.monotonic() - self._printed >= PLAIN_EVERY_S:
            self._printed = time.monotonic()
            err.print(f"  {self.title}: {detail}", highlight=False, markup=False)

    def training(self, progress: "TrainProgress") -> None:
        """Show the epoch, the loss, the time left, and the validation NDCG per exit."""
        seconds, of = progress.seconds_left, "left of this training"
        if self._remaining and (whole := self._remaining.in_training(progress)) is not None:
            seconds, of = whole, OF_BUILD
        left = "" if seconds is None else f", about {_duration(seconds)} {of}"
        quality = ", ".join(f"{depth}: {value:.4f}" for depth, value in sorted(progress.ndcg.items()))
        detail = f"{progress.stage} {progress.epoch}/{progress.epochs}{left}, loss {progress.loss:.3f}"
        detail += f", NDCG@10 at {quality}" if quality else ""
        within = progress.step / max(progress.steps, 1)
        self._show(detail, (progress.epoch - 1 + within) / progress.epochs)

    def lattice(self, progress: "LatticeProgress") -> None:
        """Show how many shards of a lattice are done, and the time left."""
        left = "" if progress.seconds_left is None else f", {_duration(progress.seconds_left)} left"
        self.update(f"shard {progress.done}/{progress.total}{left}", progress.done / progress.total)

    def ranking(self, progress: "RankProgress") -> None:
        """Show which method of how many is at which batch."""
        place = f"method {progress.number} of {progress.methods}"
        self.update(f"{place}, {progress.method}, batch {progress.batch}/{progress.batches}", progress.share)

    def __enter__(self) -> Self:
        if self._live:
            self._bar.start()
        else:
            err.print(f"{self.title} ...", highlight=False)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._bar.stop()
        if kind is None:
            took = _duration(time.monotonic() - self._start)
            err.print(f"[green]✓[/] {self.title} [dim]{took}[/]", highlight=False)


def note(text: str) -> None:
    """Print one line of text on stderr."""
    err.print(Text(text), soft_wrap=True)


def table(title: str, rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text, the header first: figures right-aligned, text and the first column left-aligned.

    What is too wide for the terminal is wrapped between words; what is still too wide continues in a second table
    below, which repeats the first column. Nothing is cut off.
    """
    _heading(title)
    columns = [_Column(cells) for cells in zip(*rows, strict=True)]
    for part in _parts(columns, out.width - EDGES):
        out.print(part)


class _Column:
    """Cells, the header first; ``natural``: the width that wraps nothing, ``least``: that which wraps no word."""

    def __init__(self, cells: Sequence[str]) -> None:
        self.cells = cells
        self.natural = max(cell_len(line) for cell in cells for line in cell.split("\n"))
        # A figure stays beside its unit or its interval.
        pieces = [piece for cell in cells for piece in (cell.split("\n") if FIGURE.match(cell) else cell.split())]
        self.least = max(map(cell_len, pieces), default=0)
        self.is_text = any(cell[:1].isalpha() for cell in cells[1:])


def _parts(columns: list[_Column], room: int) -> Iterator[Table]:
    """One table where that is wide enough, else several that share their first column."""
    gaps = len(columns) - 1
    natural, least = sum(column.natural for column in columns), sum(column.least for column in columns)
    if natural + 3 * gaps <= room:
        yield _drawn(columns, 3, room)
        return
    gap = 1 if least + gaps <= room < least + 2 * gaps else 2
    first, *others = columns
    if not others:
        yield _drawn(columns, gap, room)
    while others:
        count, used = 1, first.least + gap + others[0].least
        while count < len(others) and used + gap + others[count].least <= room:
            used, count = used + gap + others[count].least, count + 1
        yield _drawn([first, *others[:count]], gap, room)
        others = others[count:]


def _drawn(columns: Sequence[_Column], gap: int, room: int) -> Table:
    widths = [column.natural for column in columns]
    while sum(widths) + gap * (len(widths) - 1) > room and max(widths) > 1:
        loose = [n for n, column in enumerate(columns) if widths[n] > column.least] or range(len(widths))
        widths[max(loose, key=widths.__getitem__)] -= 1
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, gap - 1, 0, 0))
    for number, (column, width) in enumerate(zip(columns, widths, strict=True)):
        justify: Literal["left", "right"] = "left" if number == 0 or column.is_text else "right"
        drawn.add_column(Text(column.cells[0]), justify=justify, overflow="fold", width=width)
    for row in zip(*(column.cells[1:] for column in columns), strict=True):
        drawn.add_row(*map(Text, row))
    return drawn


def facts(title: str, values: Sequence[tuple[str, str]]) -> None:
    """Print names and values under a title."""
    shown = Table(box=None, show_header=False, pad_edge=False)
    shown.add_column(style="dim", no_wrap=True)
    shown.add_column(overflow="fold")
    for row in values:
        shown.add_row(*(Text(cell) for cell in row))
    _heading(title)
    out.print(shown)
    out.print()


def dataset_facts(meta: dict[str, Any]) -> list[tuple[str, str]]:
    """What a data set holds, what was left out of it, and how its files were read, from its meta.json."""
    rows = meta["interactions"]
    left_out = rows["filtered"] | meta["filters"]["removed"]
    reasons = ", ".join(f"{reason} ({count:,})" for reason, count in rows["malformed"].items() if reason != "rows")
    return [
        ("counts", ", ".join(f"{count:,} {name}" for name, count in meta["counts"].items())),
        ("time", "known" if meta["has_time"] else "order only"),
        ("left out", ", ".join(f"{count:,} {name}" for name, count in left_out.items() if count) or "nothing"),
        ("malformed", f"{rows['malformed']['rows']:,} of {rows['rows']:,} rows" + (f": {reasons}" if reasons else "")),
        *((note.split(": ", 1)[0], note.split(": ", 1)[1]) for note in meta["notes"]),
    ]


def reasons(lines: Sequence[str]) -> None:
    """Why something was chosen, a line each, on stderr."""
    for line in lines:
        err.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)


def _heading(title: str) -> None:
    if title:
        out.print(Text(title, style="bold"))


def result(value: Any, as_json: bool, draw: Callable[..., None], *arguments: Any) -> None:
    """Print a command's result: as JSON, or drawn from these arguments."""
    if as_json:
        print_json(value)
    else:
        draw(*arguments)


def print_json(value: Any) -> None:
    """Print one JSON value and nothing else on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes else f"{seconds:.1f} s"
