"""What docs/results.md shows of the benchmark `scaling`: tables, laws, where each resource ends, and a picture."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fathom.benchmarks.experiments.drawing import BLUE, GREEN, GREY, ORANGE, STYLE, legend_above, new_panels
from fathom.benchmarks.markdown import paragraphs, table, table_of
from fathom.benchmarks.record import load_run
from fathom.benchmarks.registry import StoredRun
from fathom.benchmarks.systems.scaling_laws import Law, crossing, fit
from fathom.edge_profiles.profile import load_profile

PICTURE = "scaling"
CAPTION = "What a request costs by its history, by the catalogue and by the calls in flight"
#: Milliseconds that a request may take in all, of p99.
LIMIT_MS = 25.0
#: Shares: of a core's time, from which on it counts as full; of the memory's bandwidth, from which on it matters; of
#: calls that are refused or get another depth, from which on that is said.
FULL, HALF, REPLACED = 0.95, 0.5, 0.01
PROFILE = "cloud"

LINEAR, QUADRATIC, ROOT = (0.0, 1.0), (0.0, 1.0, 2.0), (0.0, 0.5)
_SYMBOLS = {0.0: "", 0.5: " √{x}", 1.0: " {x}", 2.0: " {x}²"}
_KEYS = ("axis", "depth", "history", "items", "search", "in_flight", "workers")

Row = Mapping[str, Any]
Cell = dict[str, Any]


def cells_of(run: StoredRun, axis: str) -> list[Cell]:
    """Medians over the turns of every cell of an axis, in order."""
    turns: dict[tuple[Any, ...], list[Row]] = {}
    for row in run["result"]["rows"]:
        if row["axis"] == axis:
            whole = {"search": "flat", "workers": 1, **row}
            turns.setdefault(tuple(whole[key] for key in _KEYS), []).append(whole)
    found = []
    for key in sorted(turns):
        rows = turns[key]
        measured = [name for name in rows[0] if name not in (*_KEYS, "turn")]
        cell = {name: median(row[name] for row in rows) for name in measured}
        each = {name: [row[name] for row in sorted(rows, key=lambda row: row["turn"])] for name in measured}
        found.append({**dict(zip(_KEYS, key, strict=True)), **cell, "each": each})
    return found


def law_of(cells: Sequence[Cell], by: str, cost: str, powers: tuple[float, ...], **chosen: Any) -> Law | None:
    """Of the cells that have these values."""
    some = [cell for cell in cells if all(cell[name] == value for name, value in chosen.items())]
    measured = {float(cell[by]): cell["each"][cost] for cell in some}
    return fit(measured, powers) if all(value > 0 for values in measured.values() for value in values) else None


def laws(run: StoredRun) -> Iterator[tuple[str, str, Law]]:
    """What costs, the sign of what it grows with, and the law."""
    history, items, in_flight = (cells_of(run, axis) for axis in ("history", "items", "in_flight"))
    asked: list[tuple[str, str, Law | None]] = []
    for depth in _depths(history):
        asked += [
            (f"engine, µs, depth {depth}", "n", law_of(history, "history", "engine_us", QUADRATIC, depth=depth)),
            (f"processor, µs, depth {depth}", "n", law_of(history, "history", "cpu_us", QUADRATIC, depth=depth)),
        ]
    for search, powers in (("flat", LINEAR), ("pq", ROOT)):
        for depth in _depths(items):
            chosen = {"search": search, "depth": depth}
            asked += [
                (
                    f"retrieval, µs, {search}, depth {depth}",
                    "m",
                    law_of(items, "items", "retrieval_us", powers, **chosen),
                ),
                (f"processor, µs, {search}, depth {depth}", "m", law_of(items, "items", "cpu_us", powers, **chosen)),
            ]
        shallowest = _depths(items)[:1]
        for depth in shallowest:
            grown = law_of(items, "items", "memory_mb", LINEAR, search=search, depth=depth)
            asked.append((f"memory, MB, {search}", "m", grown))
    for depth in _depths(in_flight):
        asked.append((f"p50, ms, depth {depth}", "k", law_of(in_flight, "in_flight", "p50_ms", LINEAR, depth=depth)))
    return ((what, sign, law) for what, sign, law in asked if law is not None)


def render(run: StoredRun) -> str:
    """The section."""
    config, result = run["config"], run["result"]
    triad = median(result["triad_gb_s"])
    items = [{**cell, **_read(cell, config["width"], triad)} for cell in cells_of(run, "items")]
    columns = "depth={depth} | engine µs={engine_us:,.0f} | retrieval µs={retrieval_us:,.0f}"
    columns += " | processor µs={cpu_us:,.0f} | p50 ms={p50_ms:.2f} | p99 ms={p99_ms:.2f}"
    loaded = "requests/s={requests_per_s:,.0f} | p50 ms={p50_ms:.1f} | p99 ms={p99_ms:.1f} | processor µs={cpu_us:,.0f}"
    loaded += " | cores busy={cores_busy:.2f} | client's={client_busy:.2f} | not as asked={not_as_asked:.1%}"
    return paragraphs(
        "## What a request costs as things grow",
        f"Medians of {config['turns']} turns, each with new servers; best {config['k']}. Engine and retrieval are the"
        " server's own stage times, processor is what its processes took per request. A triad moves"
        f" {triad:.1f} GB/s ({min(result['triad_gb_s']):.1f} to {max(result['triad_gb_s']):.1f}) on the server's core.",
        f"![{CAPTION}](figures/{PICTURE}.svg)",
        f"The history, among {config['network_items']:,} items, one call at a time:",
        table_of(cells_of(run, "history"), f"history={{history:,}} | {columns}"),
        f"The catalogue, histories of {config['history']}, one call at a time. Reads: the bytes of all vectors over"
        " the time of a flat search, also as a share of the triad.",
        table_of(
            items,
            f"items={{items:,}} | search={{search}} | {columns} | memory MB={{memory_mb:,.0f}}"
            " | reads GB/s={reads:.1f} | of the triad={of_triad:.0%}",
        ),
        f"Calls in flight, histories of {config['history']}, one core:",
        table_of(cells_of(run, "in_flight"), f"in flight={{in_flight}} | depth={{depth}} | {loaded}"),
        "Workers, a core each; the client shares the cores of two:",
        table_of(
            cells_of(run, "workers"), f"workers={{workers}} | depth={{depth}} | in flight={{in_flight}} | {loaded}"
        ),
        "The laws, by least squares on relative errors: n items of history, m of the catalogue, k calls in flight; in"
        " brackets 95 % intervals over the turns. Residual: the largest relative one. R²: of relative errors.",
        table(
            ["cost", "law", "residual", "R²"],
            [[what, words(law, sign), f"{law.worst:.1%}", f"{law.r2:.3f}"] for what, sign, law in laws(run)],
        ),
        "Where each resource ends:",
        "\n".join(f"- {each}" for each in ends(run, triad)),
    )


def words(law: Law, sign: str) -> str:
    """``210 [205, 215] + 1.52 [1.40, 1.64] n``."""
    terms = []
    for power, each in zip(law.powers, law.coefficients, strict=True):
        around = "" if each.low == each.high else f" [{_number(each.low)}, {_number(each.high)}]"
        terms.append(f"{_number(each.value)}{around}{_SYMBOLS[power].format(x=sign)}")
    return " + ".join(terms).replace("+ -", "- ")


def _number(value: float) -> str:
    """Three digits, or all of those before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _read(cell: Cell, width: int, triad_gb_s: float) -> dict[str, float | None]:
    if cell["search"] != "flat" or not cell["retrieval_us"]:
        return {"reads": None, "of_triad": None}
    reads = cell["items"] * width * 4 / cell["retrieval_us"] / 1e3
    return {"reads": reads, "of_triad": reads / triad_gb_s}


def ends(run: StoredRun, triad_gb_s: float) -> list[str]:
    """A sentence for each resource."""
    in_flight, workers = cells_of(run, "in_flight"), cells_of(run, "workers")
    items, history = cells_of(run, "items"), cells_of(run, "history")
    depths = _depths(in_flight)
    return [
        *(_core(_at(in_flight, depth), depth) for depth in depths),
        *(_waiting(_at(in_flight, depth), depth) for depth in depths),
        *(_history(law_of(history, "history", "engine_us", QUADRATIC, depth=depth), depth) for depth in depths),
        *_bandwidth(items, run["config"]["width"], triad_gb_s),
        *_memory(items, run["machine"]["memory_gb"]),
        *_workers(workers),
    ]


def _core(cells: Sequence[Cell], depth: int) -> str:
    most = max(cells, key=lambda cell: cell["requests_per_s"])
    full = next((cell["in_flight"] for cell in cells if cell["cores_busy"] >= FULL), None)
    since = "is never full" if full is None else f"is full from {full} in flight on ({FULL:.0%} of its time)"
    return (
        f"Core, depth {depth}: it {since}; at most {most['requests_per_s']:,.0f} requests/s, at {most['in_flight']} in"
        f" flight, {most['cpu_us']:,.0f} µs each."
    )


def _waiting(cells: Sequence[Cell], depth: int) -> str:
    p99 = {float(cell["in_flight"]): cell["p99_ms"] for cell in cells}
    replaced = next((cell["in_flight"] for cell in cells if cell["not_as_asked"] > REPLACED), None)
    more = "" if replaced is None else f" From {replaced} on, more than {REPLACED:.0%} are not answered as asked."
    passes = crossing(p99, LIMIT_MS)
    if passes is None:
        return f"Waiting, depth {depth}: p99 stays below {LIMIT_MS:g} ms up to {max(p99):g} in flight.{more}"
    return f"Waiting, depth {depth}: p99 passes {LIMIT_MS:g} ms at {passes:.0f} in flight.{more}"


def _history(law: Law | None, depth: int) -> str:
    ends_at = None if law is None else law.reaches(LIMIT_MS * 1e3)
    if law is None or ends_at is None:
        return f"History, depth {depth}: there is no length at which, by its law, the engine takes {LIMIT_MS:g} ms."
    at = f"{_size(ends_at)} items{_beyond(law, ends_at)}"
    return f"History, depth {depth}: the engine alone takes {LIMIT_MS:g} ms at {at}."


def _size(items: float) -> str:
    """With three digits: a law tells no more."""
    return f"{float(f'{items:.3g}'):,.0f}"


def _beyond(law: Law, at: float) -> str:
    return "" if at <= law.largest else f" (by the law; measured up to {law.largest:,.0f})"


def _bandwidth(items: Sequence[Cell], width: int, triad_gb_s: float) -> Iterator[str]:
    for depth in _depths(items)[:1]:
        flat = [cell for cell in _at(items, depth) if cell["search"] == "flat"]
        shares = {cell["items"]: _read(cell, width, triad_gb_s)["of_triad"] or 0.0 for cell in flat}
        half = next((each for each, share in sorted(shares.items()) if share >= HALF), None)
        since = f"from {half:,} items on" if half else "in no catalogue"
        fastest = triad_gb_s * LIMIT_MS * 1e6 / (4 * width)
        law = law_of(items, "items", "retrieval_us", LINEAR, search="flat", depth=depth)
        ends_at = law.reaches(LIMIT_MS * 1e3) if law else None
        ours = f", a flat search {_size(ends_at)}{_beyond(law, ends_at)}" if law and ends_at else ""
        yield (
            f"Memory bandwidth: a flat search reads {since} at more than {HALF:.0%} of the triad's speed, at most at"
            f" {max(shares.values(), default=0):.0%}. At the triad's speed {_size(fastest)} vectors could be read in"
            f" {LIMIT_MS:g} ms{ours}."
        )
        pq = law_of(items, "items", "retrieval_us", ROOT, search="pq", depth=depth)
        if pq and (most := pq.reaches(LIMIT_MS * 1e3)):
            yield f"An index of kind pq would take {LIMIT_MS:g} ms at {_size(most)} items{_beyond(pq, most)}."


def _memory(items: Sequence[Cell], machine_gb: float) -> Iterator[str]:
    allowed = load_profile(PROFILE).memory_limit_mb * 2**20 / 1e6
    for search in ("flat", "pq"):
        for depth in _depths(items)[:1]:
            law = law_of(items, "items", "memory_mb", LINEAR, search=search, depth=depth)
            if law is None:
                continue
            each = law.coefficients[1].value * 1e6
            profile, machine = law.reaches(allowed), law.reaches(machine_gb * 1e3)
            if profile and machine:
                yield (
                    f"Memory, {search}: {each:,.0f} bytes an item; what profile {PROFILE} allows is full at"
                    f" {_size(profile)} items{_beyond(law, profile)}, this machine's {machine_gb:g} GB at"
                    f" {_size(machine)}."
                )


def _workers(cells: Sequence[Cell]) -> Iterator[str]:
    for depth in _depths(cells):
        own = {cell["workers"]: cell for cell in _at(cells, depth)}
        if len(own) > 1:
            one, most = own[min(own)], own[max(own)]
            yield (
                f"Workers, depth {depth}: {most['workers']} answer {most['requests_per_s'] / one['requests_per_s']:.2f}"
                f" times what {one['workers']} does; a request costs {most['cpu_us'] / one['cpu_us']:.2f} times as much"
                " processor time."
            )


def _depths(cells: Sequence[Cell]) -> list[int]:
    return sorted({cell["depth"] for cell in cells})


def _at(cells: Sequence[Cell], depth: int) -> list[Cell]:
    return [cell for cell in cells if cell["depth"] == depth]


def load_scaling(folder: Path) -> StoredRun | None:
    """The stored run, if there is one."""
    path = folder / f"{PICTURE}.json"
    return load_run(path) if path.exists() else None


def scaling_figure(run: StoredRun) -> Figure:
    """Points with the laws through them; p99 with its limit."""
    with mpl.rc_context(STYLE):
        titles = ("the engine", "retrieval", "p99")
        figure, panels = new_panels(titles, "", "")
        by_history, by_items, by_load = panels
        history, items, in_flight = (cells_of(run, axis) for axis in ("history", "items", "in_flight"))
        colours = dict(zip(_depths(in_flight), (BLUE, ORANGE), strict=False))
        for depth, colour in colours.items():
            law = law_of(history, "history", "engine_us", QUADRATIC, depth=depth)
            _curve(by_history, _at(history, depth), "history", "engine_us", law, colour, f"depth {depth}")
            _curve(by_load, _at(in_flight, depth), "in_flight", "p99_ms", None, colour, f"depth {depth}")
        for search, powers, colour in (("flat", LINEAR, GREEN), ("pq", ROOT, GREY)):
            some = [cell for cell in _at(items, min(colours)) if cell["search"] == search]
            law = law_of(some, "items", "retrieval_us", powers)
            _curve(by_items, some, "items", "retrieval_us", law, colour, search)
        by_load.axhline(LIMIT_MS, color=GREY, linewidth=1, linestyle=":", label=f"{LIMIT_MS:g} ms")
        names = (("items of the history", "µs"), ("items of the catalogue", "µs"), ("calls in flight", "ms"))
        for axes, (xlabel, ylabel) in zip(panels, names, strict=True):
            axes.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
        return legend_above(figure, panels, 5)


def _curve(
    axes: Axes, cells: Sequence[Cell], by: str, cost: str, law: Callable[[float], float] | None, colour: str, label: str
) -> None:
    """Points, and the law or else straight lines."""
    sizes = [cell[by] for cell in cells]
    axes.plot(sizes, [cell[cost] for cell in cells], "o" if law else "o-", color=colour, markersize=4, label=label)
    if law and sizes:
        between = [sizes[0] * (sizes[-1] / sizes[0]) ** (step / 60) for step in range(61)]
        axes.plot(between, [law(size) for size in between], color=colour, linewidth=1)
