"""Where Fathom loses: which peer is better at what, by how much, in every turn."""

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from fathom.benchmarks.systems.front import DEPTHS
from fathom.benchmarks.systems.peers.arms import fixed
from fathom.benchmarks.systems.peers.loads import FACTORS, OTHER_FACTORS, OTHER_MS, WITHIN_MS
from fathom.benchmarks.systems.peers.stored import Figures, Measured, Ratio, ratio
from fathom.benchmarks.systems.peers.turns import FATHOM


class Measure(NamedTuple):
    """Something that Fathom and a peer are measured by."""

    words: str
    ours: Figures
    theirs: Figures
    more_is_better: bool = False


class Loss(NamedTuple):
    """Fathom's figure over the peer's."""

    peer: str
    words: str
    ratio: Ratio


def measures(measured: Measured, peer: str) -> Iterator[Measure]:
    """All that a peer is compared by."""

    def closed(depth: int, loop: str, key: str) -> tuple[Figures, Figures]:
        return measured.closed(FATHOM, depth, loop, key), measured.closed(peer, depth, loop, key)

    for depth in DEPTHS:
        at = f"at depth {depth}"
        yield Measure(f"requests/s {at} with 32 in flight", *closed(depth, "busy", "requests_per_s"), True)
        yield Measure(f"p50 {at} with one in flight", *closed(depth, "alone", "p50_ms"))
        yield Measure(f"p99 {at} with one in flight", *closed(depth, "alone", "p99_ms"))
        yield Measure(f"processor time of a request {at}", *closed(depth, "busy", "cpu_us"))
        times = [(WITHIN_MS, FACTORS), *((ms, OTHER_FACTORS) for ms in OTHER_MS)]
        for ms, factors in times:
            for factor in factors:
                ours, theirs = (measured.goodput(name, fixed(depth), str(depth), factor, ms) for name in (FATHOM, peer))
                yield Measure(f"answers within {ms} ms {at} at load {factor:g}", ours, theirs, True)
    for key, words in (("memory_mb", "memory"), ("start_s", "time to start")):
        yield Measure(words, measured.side(FATHOM, key), measured.side(peer, key))


def losses(measured: Measured) -> list[Loss]:
    """Where a peer was better in every turn."""
    found = []
    for peer in measured.peers:
        for words, ours, theirs, more_is_better in measures(measured, peer):
            known = ratio(ours, theirs)
            if known is not None and (known.high < 1 if more_is_better else known.low > 1):
                found.append(Loss(peer, words, known))
    return found


def where_fathom_loses(measured: Measured) -> str:
    """The same in one line."""
    by_peer: dict[str, list[str]] = defaultdict(list)
    for loss in losses(measured):
        by_peer[loss.peer].append(f"{loss.words} {loss.ratio.words}")
    if not by_peer:
        return "**Where Fathom loses:** nowhere in every turn."
    parts = "; ".join(f"to {peer} in {', '.join(each)}" for peer, each in by_peer.items())
    return f"**Where Fathom loses** in every turn, its figure over the peer's: {parts}."
