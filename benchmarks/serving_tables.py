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
        "in time",
        "answered p99 ms",
        "refused p50 ms",
        "refused p99 ms",
    ]
    header += ["OK", "RESOURCE_EXHAUSTED", "CANCELLED", "DEADLINE_EXCEEDED", "memory MB"]
    rows = []
    for name in ("backlog_default", "backlog_8"):
        for row in result[name]:
            statuses = row["statuses"]
            times = [row["answered_p99_ms"], row["refused_p50_ms"], row["refused_p99_ms"]]
            rows.append(
                [
                    name.removeprefix("backlog_"),
                    f"{row['factor']:g} x",
                    f"{row['offered_per_s']:,.0f}",
                    f"{row['goodput_per_s']:,.0f}",
                    f"{row['in_time']:.1%}",
                    *("-" if each is None else f"{each:.1f}" for each in times),
                    *(str(statuses.get(each, 0)) for each in ("OK", "RESOURCE_EXHAUSTED", "CANCELLED")),
                    str(statuses.get("DEADLINE_EXCEEDED", 0)),
                    f"{row['memory_grown_mb']:+.1f}",
                ]
            )
    peaks = {name: max(row["goodput_per_s"] for row in result[name]) for name in ("backlog_default", "backlog_8")}
    kept = {name: result[name][-1]["goodput_per_s"] / peak for name, peak in peaks.items()}
    return "\n\n".join(
        [
            "## More load than the server can bear",
            f"Bundle {config['bundle']}, Poisson arrivals, each wants its answer within {config['deadline_ms']:g} ms"
            f" and says so; load as a multiple of the {result['capacity_per_s']:,.0f} requests/s that a closed loop"
            f" gets at"
            " the deepest depth. Client and server share two cores. Goodput at ten times the capacity is"
            f" {kept['backlog_default']:.0%} of its peak with the default backlog, {kept['backlog_8']:.0%} with 8.",
            table(header, rows),
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
