"""The section of a stored comparison: where Fathom loses, then a part for each depth, then the quality sweep."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fathom.benchmarks.markdown import decimal, paragraphs, table, table_of
from fathom.benchmarks.registry import StoredRun
from fathom.benchmarks.systems.front import DEPTHS, IN_FLIGHT
from fathom.benchmarks.systems.peers.arms import CERTIFIED, fixed
from fathom.benchmarks.systems.peers.loads import FACTORS, OTHER_FACTORS, OTHER_MS, SWEEP, WITHIN_MS
from fathom.benchmarks.systems.peers.losses import where_fathom_loses
from fathom.benchmarks.systems.peers.stored import Figures, Measured, middle, ratio
from fathom.benchmarks.systems.peers.turns import FATHOM

#: What is wanted of the certified arm: so many times the answers in time of the best peer at the deepest depth.
TIMES = 3
DEEPEST = str(DEPTHS[-1])
NOTHING = "–"


class Contender(NamedTuple):
    """A row of the quality sweep: an arm of a server."""

    side: str
    arm: str

    @property
    def words(self) -> str:
        """For people."""
        return f"{self.side}, {self.arm.replace('-', ' ')}"


def render(run: StoredRun) -> str:
    """The whole section."""
    config, measured = run["config"], Measured.of(run)
    return paragraphs(
        f"## Beside other servers with the same engines, width {config['width']}",
        where_fathom_loses(measured),
        _about(config),
        *(part for depth in DEPTHS for part in _depth(measured, depth)),
        *_sweep(measured, quality=config["quality"]),
        _left_out(run, measured),
        *_settings(run["result"]["settings"]),
    )


def _about(config: Mapping[str, Any]) -> str:
    histories = "real histories in their own order" if config["quality"] else "random histories"
    return (
        f"Bundle {config['bundle']}, histories of {config['mean_history']:g} items in the mean. Every server has the"
        " same engines and item vectors and gave the same items. Server and client on a core each, medians of"
        f" {config['turns']} turns, in brackets the range. Closed loops: Fathom with its defaults, histories that come"
        " once. Open loops: arrivals at random moments, latency from the moment that a request was due;"
        f" {histories}, Fathom without its caches. Every server that speaks gRPC is told a request's deadline,"
        f" {WITHIN_MS} ms unless another is named; those that speak HTTP cannot be. Memory: of all processes after the"
        " closed loops, what they share counted once."
    )


def _depth(measured: Measured, depth: int) -> list[str]:
    names = [FATHOM, *measured.peers]
    return [
        f"### At depth {depth}",
        table_of(
            [_at_rest(measured, name, depth) for name in names],
            f"server={{name}} | requests/s, {IN_FLIGHT} in flight={{busy}} | CPU µs={{cpu:,.0f}}"
            " | p50 ms, one in flight={p50:.2f} | p99 ms={p99:.2f} | most in time, 1/s={best}"
            " | memory MB={memory:,.0f} | ready after s={start:.1f}",
        ),
        f"Answers within {WITHIN_MS} ms per second; below each Fathom's over the peer's, with the range over turns:",
        table(
            ["load", "offered/s", *names],
            [_load_row(measured, names, depth, factor) for factor in FACTORS],
        ),
        f"The same within {' and '.join(map(str, OTHER_MS))} ms:",
        table(
            ["load", "within", *names],
            [_load_row(measured, names, depth, factor, ms) for ms in OTHER_MS for factor in OTHER_FACTORS],
        ),
    ]


def _at_rest(measured: Measured, name: str, depth: int) -> dict[str, Any]:
    busy = measured.closed(name, depth, "busy", "requests_per_s")
    return {
        "name": name,
        "busy": _ranged(busy),
        "cpu": middle(measured.closed(name, depth, "busy", "cpu_us")),
        "p50": middle(measured.closed(name, depth, "alone", "p50_ms")),
        "p99": middle(measured.closed(name, depth, "alone", "p99_ms")),
        "best": _ranged(measured.best(name, depth)),
        "memory": middle(measured.side(name, "memory_mb")),
        "start": middle(measured.side(name, "start_s")),
    }


def _load_row(
    measured: Measured, names: Sequence[str], depth: int, factor: float, within_ms: int = WITHIN_MS
) -> list[str]:
    arm, of = fixed(depth), str(depth)
    each = {name: measured.goodput(name, arm, of, factor, within_ms) for name in names}
    if within_ms == WITHIN_MS:
        offered = middle(measured.row(FATHOM, arm, of, factor, lambda row: row["offered_per_s"]))
        second = NOTHING if offered is None else f"{offered:,.0f}"
    else:
        second = f"{within_ms} ms"
    return [f"{factor:g} x", second, *(_cell(each[FATHOM], each[name], name) for name in names)]


def _cell(ours: Figures, theirs: Figures, name: str) -> str:
    known = middle(theirs)
    if known is None:
        return NOTHING
    times = None if name == FATHOM else ratio(ours, theirs)
    return f"{known:,.0f}" + ("" if times is None else f"<br>{times.words}")


def _ranged(figures: Figures) -> str:
    known = [figure for figure in figures if figure is not None]
    return f"{middle(known):,.0f} ({min(known):,.0f} to {max(known):,.0f})" if known else NOTHING


def contenders(measured: Measured) -> list[Contender]:
    """Every arm of Fathom, then each peer at each depth."""
    ours = [Contender(FATHOM, arm) for arm in measured.turns[0][FATHOM]["rows"]]
    return ours + [Contender(name, fixed(depth)) for name in measured.peers for depth in DEPTHS]


def _sweep(measured: Measured, *, quality: bool) -> list[str]:
    rows = contenders(measured)
    heads = ["server and arm", *(f"{factor:g} x" for factor in SWEEP)]
    goodput = [[row.words, *(_goodput(measured, row, factor) for factor in SWEEP)] for row in rows]
    parts = [
        "### Ways to choose a depth",
        f"Loads are multiples of what Fathom answers at depth {DEEPEST}. Answers within {WITHIN_MS} ms per second:",
        table(heads, goodput),
    ]
    if not quality:
        return parts
    gained = {row: [_ndcg(measured, row, factor, "ndcg") for factor in SWEEP] for row in rows}
    parts += [
        f"Quality-goodput: NDCG@10 of what was answered within {WITHIN_MS} ms, every request counted:",
        table(heads, [[row.words, *map(_decimal, each)] for row, each in gained.items()]),
        f"Highest: {_highest(gained)}.",
    ]
    return [*parts, *_certified(measured)]


def _goodput(measured: Measured, row: Contender, factor: float) -> str:
    known = middle(measured.goodput(row.side, row.arm, DEEPEST, factor))
    return NOTHING if known is None else f"{known:,.0f}"


def _ndcg(measured: Measured, row: Contender, factor: float, key: str) -> float | None:
    return middle(measured.row(row.side, row.arm, DEEPEST, factor, lambda found: found.get(key)))


def _highest(gained: Mapping[Contender, Sequence[float | None]]) -> str:
    said = []
    for place, factor in enumerate(SWEEP):
        known = {row: each[place] for row, each in gained.items() if each[place] is not None}
        if known:
            best = max(known, key=lambda row: known[row] or 0.0)
            said.append(f"at {factor:g} x {best.words} ({_decimal(known[best])})")
    return ", ".join(said)


def _certified(measured: Measured) -> list[str]:
    """The certified arm beside the best peer at the deepest depth."""
    ours = Contender(FATHOM, CERTIFIED)
    deep = _ndcg(measured, Contender(FATHOM, fixed(DEPTHS[-1])), SWEEP[0], "ndcg_in_time")
    if ours not in contenders(measured) or not measured.peers:
        return []
    rows = []
    for factor in SWEEP:
        answers = measured.goodput(FATHOM, CERTIFIED, DEEPEST, factor)
        each = {name: measured.goodput(name, fixed(DEPTHS[-1]), DEEPEST, factor) for name in measured.peers}
        best = max(each, key=lambda name: middle(each[name]) or 0.0)
        of_best = NOTHING if middle(each[best]) is None else f"{best}: {_ranged(each[best])}"
        times, own = ratio(answers, each[best]), _ndcg(measured, ours, factor, "ndcg_in_time")
        rows.append(
            [
                f"{factor:g} x",
                _ranged(answers),
                of_best,
                NOTHING if times is None else times.words,
                NOTHING if times is None else ("yes" if times.low >= TIMES else "no"),
                NOTHING if own is None or not deep else f"{own / deep:.3f}",
            ]
        )
    heads = ["load", "certified, in time/s", f"best peer at depth {DEEPEST}", "times", f"{TIMES} times in every turn"]
    heads.append(f"NDCG@10 of its answers over depth {DEEPEST}'s")
    return [
        f"The certified arm beside the best peer at depth {DEEPEST}, answers within {WITHIN_MS} ms per second:",
        table(heads, rows),
    ]


def _decimal(value: float | None) -> str:
    return NOTHING if value is None else decimal(value)


def _left_out(run: StoredRun, measured: Measured) -> str:
    said = [f"Not measured: {'; '.join(run['config']['left_out'])}."] if run["config"]["left_out"] else []
    said.append(f"{NOTHING}: not offered, since hardly anything was in time at a smaller load.")
    if away := measured.thrown_away():
        said.append(f"Thrown away, since the client used more than 80 % of its core: {'; '.join(away)}.")
    return " ".join(said)


def _settings(tried: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        [row["peer"], row["setting"], *(f"{row['requests_per_s'][str(depth)]:,.0f}" for depth in DEPTHS)]
        for row in tried
    ]
    heads = ["peer", "setting", *(f"requests/s at depth {depth}" for depth in DEPTHS)]
    return (
        ["Settings that were tried, of each peer the one with the greatest product was measured:", table(heads, rows)]
        if rows
        else []
    )
