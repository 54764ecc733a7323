"""Measured costs and plans in words, for a terminal and for documents."""

from collections.abc import Mapping, Sequence

import numpy as np

from fathom.tools.capacity.costs import CellCost, MeasuredCosts
from fathom.tools.capacity.plan import Plan

#: The same load costs an idle machine no more than this share more or less.
STEADY = 0.1
COSTS_TITLE = "Processor time of a batch of n requests, µs"
_BINDS = {
    "CPU": "CPU: the core has no time left",
    "p99": "p99: it exceeds what is wanted before the core is full",
    "deadline": "deadline: more than 1 % of the requests are not answered in time",
    "depth": "depth: more requests than allowed get a shallower depth, since the deadline is near",
    "memory": "memory: it takes more machines than the cores do",
}


def plan_facts(plan: Plan, costs: MeasuredCosts) -> list[tuple[str, str]]:
    """A plan as names and values."""
    wish, core = plan.wish, plan.core
    days = f"{wish.users:,.0f} users, {wish.requests_per_day:g} requests a day: {plan.mean_per_s:,.0f}/s on average"
    routed = "fixed by the request" if wish.depth is not None else "as the server chose without a deadline"
    within = "no deadline" if wish.deadline_ms is None else f"deadline {wish.deadline_ms:g} ms"
    process = f"{costs.process_mb:,.0f} MB a process, {costs.cache_mb:,.0f} MB of it the prefix cache"
    stored = f"; {plan.history_gb_per_machine:.1f} GB histories" if wish.history_events else ""
    facts = [
        ("peak", f"{plan.peak_per_s:,.0f} requests/s ({days}, x {wish.peak_factor:g})"),
        ("depths", f"{_mix(plan.mix)}, {routed}"),
        ("histories", f"{costs.histories_of}; {wish.cache_hits:.0%} assumed to be in the prefix cache"),
        ("one core", f"{core.per_s:,.0f} requests/s at most, for p99 {wish.p99_ms:g} ms; {within}"),
        ("", f"there at worst p50 {core.p50_ms:.1f} ms, p99 {core.p99_ms:.1f} ms, {core.busy:.0%} busy"),
        ("", f"{core.shallower:.1%} at a shallower depth than wanted; {wish.most_shallower:.0%} allowed"),
        ("binds", _BINDS[plan.binds]),
        ("cores", f"{plan.cores:,}, one process on each, {wish.headroom:.0%} of what it bears left free at the peak"),
        ("machines", f"{plan.machines:,} with {plan.processes_per_machine} processes each, and 1 to spare"),
        ("memory", f"{plan.memory_gb_per_machine:.1f} GB a machine ({process}{stored})"),
    ]
    if plan.price_per_month is not None:
        million = f"{plan.price_per_million:,.2f} per million requests"
        hour = f"at {wish.price_per_hour:g} per machine and hour"
        facts.append(("price", f"{plan.price_per_month:,.0f} a month, {million} ({hour})"))
    return [
        *facts,
        ("measured", f"{costs.bundle} {costs.bundle_version} as {costs.profile}: {_where(costs)}{_busy(costs)}"),
    ]


def measured_facts(costs: MeasuredCosts) -> list[tuple[str, str]]:
    """What was measured, but for the costs of batches."""
    stalled_s = costs.stalls_per_s * sum(costs.stalls_us) / len(costs.stalls_us) / 1e6
    return [
        ("measured", _where(costs)),
        ("histories", costs.histories_of),
        ("depths", _mix(costs.mix)),
        ("memory", f"{costs.process_mb:,.0f} MB of a process, {costs.cache_mb:,.0f} MB of it the prefix cache"),
        ("disturbed", f"{costs.stalls_per_s:,.0f} times per second of work, {stalled_s * 1e3:,.0f} ms in all"),
        ("threads", f"one that wakes waits for the core {np.mean(costs.delays_us):,.0f} µs in the mean"),
        ("repeated", f"a load takes {costs.spread:.1%} more or less than its line{_busy(costs)}"),
    ]


def cost_rows(measured: Sequence[CellCost], count_us: float | None) -> list[list[str]]:
    """What batches cost, by depth and length of the histories; the header first."""
    lengths = sorted({cell.history for cell in measured})
    cells = {(cell.depth, cell.history): cell for cell in measured}
    rows = [["depth", *(f"{length} items" if length else "remembered" for length in lengths)]]
    if count_us is not None:
        rows.append(["0", *[f"{count_us:,.0f} n"] * len(lengths)])
    for depth in sorted({cell.depth for cell in measured}):
        row = [cells[depth, length] for length in lengths]
        rows.append([str(depth), *(f"{cell.fixed_us:,.0f} + {cell.each_us:,.0f} n" for cell in row)])
    return rows


def _where(costs: MeasuredCosts) -> str:
    return f"{costs.machine}, {costs.created}"


def _busy(costs: MeasuredCosts) -> str:
    return "; the machine was not idle: measure again" if costs.spread > STEADY else ""


def _mix(mix: Mapping[int, float]) -> str:
    return ", ".join(f"{share:.0%} depth {depth}" for depth, share in mix.items())
