"""The part of docs/results.md about a server in production: returning users, overload, exchanged bundles, soak."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fathom.benchmarks.markdown import table

Run = Mapping[str, Any]


def serving_sections(folder: Path) -> list[str]:
    """A section for each run that is stored."""
    sections: list[tuple[str, Callable[[Run], str]]] = [
        ("returning", _returning),
        ("overload", _overload),
        ("overload-wide", _overload),
        ("workers", _workers),
        ("stages", _stages),
        ("reload", _reload),
        ("history", _history),
        ("soak", _soak),
    ]
    stored = [(folder / f"{name}.json", section) for name, section in sections]
    return [section(json.loads(path.read_bytes())) for path, section in stored if path.exists()]


def _returning(run: Run) -> str:
    header = [
        "depth",
        "afresh ms",
        "resumed ms",
        "times less",
        "same top 10",
        "new user costs",
        "in a batch",
        "kept KB",
    ]
    rows = [
        [
            str(row["depth"]),
            f"{row['afresh_ms']:.2f}",
            f"{row['resumed_ms']:.2f}",
            f"{row['times_less']:.1f}",
            f"{row['same_top_10']} of {row['users']}",
            f"{row['new_user_costs']:.2f} x",
            f"{row['new_users_in_batch_cost']:.2f} x",
            f"{row['kept_kb']:.0f}",
        ]
        for row in run["result"]["rows"]
    ]
    config = run["config"]
    return "\n\n".join(
        [
            "## A returning user with one new item",
            f"Bundle {config['bundle']}, {config['history'] - 1} items known and one new, batch 1, one thread: the"
            " engine's time of going on from what is kept, and of computing the history afresh. On the right what"
            f" keeping costs a user who is new, alone and in a batch of {config['batch']}, times not keeping.",
            table(header, rows),
        ]
    )


def _overload(run: Run) -> str:
    result, config = run["result"], run["config"]
    header = [
        "backlog",
        "load",
        "offered/s",
        "goodput/s",
        "of its peak",
        "answered p99 ms",
        "refused p50 ms",
        "refused p99 ms",
    ]
    header += ["OK", "RESOURCE_EXHAUSTED", "CANCELLED", "DEADLINE_EXCEEDED", "memory MB"]
    rows = []
    for name in ("backlog_default", "backlog_8"):
        peak = max(row["goodput_per_s"] for row in result[name])
        for row in result[name]:
            statuses = row["statuses"]
            times = [row["answered_p99_ms"], row["refused_p50_ms"], row["refused_p99_ms"]]
            rows.append(
                [
                    name.removeprefix("backlog_"),
                    f"{row['factor']:g} x",
                    f"{row['offered_per_s']:,.0f}",
                    f"{row['goodput_per_s']:,.0f}",
                    f"{row['goodput_per_s'] / peak:.0%}",
                    *("-" if each is None else f"{each:.1f}" for each in times),
                    *(str(statuses.get(each, 0)) for each in ("OK", "RESOURCE_EXHAUSTED", "CANCELLED")),
                    str(statuses.get("DEADLINE_EXCEEDED", 0)),
                    f"{row['memory_grown_mb']:+.1f}",
                ]
            )
    return "\n\n".join(
        [
            f"## More load than the server can bear, width {config['width']}",
            f"Bundle {config['bundle']}, histories of {config['mean_history']:g} items in the mean, Poisson arrivals;"
            f" each request wants its answer within {config['deadline_ms']:g} ms and says so. Load as a multiple of the"
            f" {result['capacity_per_s']:,.0f} requests/s that a closed loop gets at the deepest depth. Client and"
            " server share two cores.",
            table(header, rows),
        ]
    )


def _stages(run: Run) -> str:
    spent, config = run["result"]["cpu_us"], run["config"]
    versions = sorted(spent)
    stages = [*spent["now"], *(stage for stage in spent[versions[0]] if stage not in spent["now"])]
    rows = [[stage, *(f"{spent[version].get(stage, 0.0):.0f}" for version in versions)] for stage in stages]
    rows.append(["all", *(f"{sum(spent[version].values()):.0f}" for version in versions)])
    before = f" Before is commit {config['before'][:7]}." if config["before"] else ""
    return "\n\n".join(
        [
            "## Where the processor time of a request goes",
            f"Depth {config['depth']}, history {config['history']}, {config['concurrency']} in flight: microseconds of"
            f" processor time per request by stage.{before}",
            table(["stage", *versions], rows),
        ]
    )


def _workers(run: Run) -> str:
    result, config = run["result"], run["config"]
    return "\n\n".join(
        [
            "## A worker killed under load",
            f"kill -9 of one of {config['workers']} workers, {result['kills']} times, at {config['rate_per_s']:g}"
            f" requests/s over {config['channels']} connections, nothing tried again: of {result['requests']:,}"
            f" requests {result['failed_in_flight']} failed, of {result['in_flight_at_kills']} that were in flight in"
            f" both workers at those moments, {result['failed_before_it_was_noticed']} that were sent before the client"
            f" could notice, and {result['failed_otherwise']} others. Another worker was ready"
            f" after {result['back_s']['median']:g} s (median; at most {result['back_s']['most']:g}).",
        ]
    )


def _reload(run: Run) -> str:
    result, config = run["result"], run["config"]
    statuses = ", ".join(f"{count:,} {status}" for status, count in result["statuses"].items())
    return "\n\n".join(
        [
            "## Bundles exchanged under load",
            f"{result['exchanged']} exchanges at {config['rate_per_s']:g} requests/s: {statuses};"
            f" {result['wrong_answers']} answers that were not those of the version that they named."
            f" {result['refused']} of {config['damaged']} damaged bundles refused. An exchange takes"
            f" {result['reload_s']:.1f} s; meanwhile p50 {result['during_ms']['p50']:.1f} ms"
            f" and p99 {result['during_ms']['p99']:.1f} ms, against {result['quiet_ms']['p50']:.1f} and"
            f" {result['quiet_ms']['p99']:.1f} ms without.",
        ]
    )


def _history(run: Run) -> str:
    result = run["result"]
    header = ["store", "append alone ms", "appends together/s", f"read {run['config']['history']} events µs"]
    rows = [
        [name, f"{each['append_ms']:.2f}", f"{each['appends_together_per_s']:,}", f"{each['read_us']:.0f}"]
        for name, each in ((name, result[name]) for name in ("sqlite", "memory"))
    ]
    return "\n\n".join(
        [
            "## Histories of users",
            f"kill -9 of a process that appends, {len(result['kills'])} times at random moments: of"
            f" {result['acknowledged']:,} acknowledged events {result['lost']} were lost.",
            table(header, rows),
        ]
    )


def _soak(run: Run) -> str:
    result = run["result"]
    statuses = ", ".join(f"{count:,} {status}" for status, count in result["statuses"].items())
    rows = result["rows"]
    return "\n\n".join(
        [
            "## Half an hour at half of the capacity",
            f"{run['config']['minutes']} minutes, {result['offered_per_s']:,.0f} calls/s of four kinds: {statuses}."
            f" Resident memory from {rows[0]['rss_mb']:.1f} to {rows[-1]['rss_mb']:.1f} MB"
            f" ({result['rss_grown']:+.1%}); p99 {result['p99_ms_first_third']:.1f} ms in the first third,"
            f" {result['p99_ms_last_third']:.1f} ms in the last (medians over minutes); threads"
            f" {_span(result['threads'])}, open files {_span(result['files'])}.",
        ]
    )


def _span(values: list[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"
