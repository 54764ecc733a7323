"""What a soak says in docs/results.md."""

from collections.abc import Mapping
from typing import Any

from fathom.benchmarks.markdown import paragraphs, table, table_of
from fathom.benchmarks.registry import StoredRun
from fathom.benchmarks.systems.soak.judgement import Check, checked

SHARES_IN_WORDS = {0.5: "half"}


def render(run: StoredRun) -> str:
    """One paragraph; of a run of all kinds of calls also its verdict, its checks and what became of each kind."""
    result, config = run["result"], run["config"]
    is_mixed = bool(config.get("mixed"))
    statuses = ", ".join(f"{count:,} {status}" for status, count in result["statuses"].items())
    before, after, rows = result["before"], result["after"], result["rows"]
    workers = f", {config['workers']} workers" if config["workers"] > 1 else ""
    many = "all" if is_mixed else "four"
    return paragraphs(
        _title(config),
        f"Transport {result['transport']}{workers}, {result['offered_per_s']:,.0f} calls/s of {many} kinds: {statuses}."
        f"{_disturbed(config, result)}"
        f" Resident memory {before['rss_mb']:.1f} MB before and {after['rss_mb']:.1f} MB after; by minute from"
        f" {rows[0]['rss_mb']:.1f} to {rows[-1]['rss_mb']:.1f} MB ({result['rss_grown']:+.1%} from the first third"
        f" to the last); p99 {result['p99_ms_first_third']:.1f} ms in the first third,"
        f" {result['p99_ms_last_third']:.1f} ms in the last (medians over minutes);"
        f" threads {_levels(before, after, 'threads', result)},"
        f" open files {_levels(before, after, 'files', result)}.",
        *(_mixed(run) if is_mixed else ()),
    )


def _title(config: Mapping[str, Any]) -> str:
    load = config.get("load", 0.5)
    kinds = ", all kinds of calls" if config.get("mixed") else ""
    disturbed = ", with reloads and kills" if config["reloads"] or config["kills"] else ""
    share = SHARES_IN_WORDS.get(load, f"{load:.0%}")
    return f"## {config['minutes']} minutes at {share} of the capacity{kinds}{disturbed}"


def _disturbed(config: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    if not config["reloads"] and not config["kills"]:
        return ""
    return (
        f" Meanwhile {result['exchanged']} bundles were exchanged and {result['kills']} workers killed;"
        f" {result['failed']} calls failed, {result['failed_without_a_kill']} of them not in a worker that was killed."
    )


def _levels(before: Mapping[str, Any], after: Mapping[str, Any], what: str, result: Mapping[str, Any]) -> str:
    low, high = result[what][0], result[what][-1]
    return f"{before[what]} before and {after[what]} after ({low if low == high else f'{low} to {high}'} in between)"


def verdict(checks: list[Check]) -> str:
    """One sentence."""
    failed = [each.what for each in checks if not each.passed]
    if not failed:
        return f"**Passed**: all {len(checks)} checks."
    return f"**Failed**: {len(failed)} of {len(checks)} checks: {'; '.join(failed)}."


def _mixed(run: StoredRun) -> list[str]:
    result, checks = run["result"], checked(run)
    rows = [
        [
            each.what,
            _figure(each, each.value),
            f"{'≥' if each.at_least else '≤'} {_figure(each, each.limit)}",
            _word(each),
        ]
        for each in checks
    ]
    kinds = [
        {"kind": kind, **found, "statuses": ", ".join(f"{count:,} {name}" for name, count in found["statuses"].items())}
        for kind, found in result["kinds"].items()
    ]
    called = ", ".join(f"{method} {count:,}" for method, count in result["called"].items())
    return [
        verdict(checks),
        table(["check", "value", "limit", "verdict"], rows),
        f"{_memory(result['memory'])}{_alarms(result['alarms'])}",
        table_of(kinds, "kind of call={kind} | ended={statuses} | p50, ms={p50_ms} | p99, ms={p99_ms}"),
        f"Methods that were answered: {called}.",
    ]


def _word(check: Check) -> str:
    return "passed" if check.passed else "**failed**"


def _figure(check: Check, value: float | None) -> str:
    if value is None:
        return "none"
    return f"{value:+.1%}" if check.what.startswith("growth") else f"{value:g}"


def _memory(memory: Mapping[str, Any]) -> str:
    parent, stayed = memory["parent"], memory["never_killed"]
    words = f"Resident memory, medians of the first third and the last: parent {_grown(parent)}; "
    if stayed is not None:
        words += f"of {stayed['workers']} workers that nobody killed, the one that has grown most {_grown(stayed)}"
    else:
        words += "no worker lived through all of it"
    if memory["replaced"]:
        ages = ", ".join(
            f"{_grown(row)} in minute {row['age_min'] + 1} ({row['workers'][0]} and {row['workers'][1]} workers)"
            for row in memory["replaced"]
        )
        words += (
            f". Workers in the place of killed ones start small and are compared by age, which is not judged: {ages}"
        )
    return words + "."


def _grown(row: Mapping[str, Any]) -> str:
    return f"{row['first_mb']:.1f} to {row['last_mb']:.1f} MB ({row['grown']:+.1%})"


def _alarms(alarms: Mapping[str, Any]) -> str:
    if not alarms["certified"]:
        return " The bundle has no certificate, so no alarm could be raised."
    before, changed = alarms["as certified"], alarms["changed"]
    return (
        f" Histories are of other items in the middle third: of {changed['answers']:,} answers of GetBundle then,"
        f" {changed['alarm']:,} say that the certificate no longer fits and {changed['recertified']:,} that another"
        f" routing is certified; of {before['answers']:,} at other times {before['alarm']:,} and"
        f" {before['recertified']:,}. Of versions that had not said so before: {alarms['new']['alarm']:,} and"
        f" {alarms['new']['recertified']:,}.{_first(alarms['first_s'])}"
    )


def _first(first_s: Mapping[str, float]) -> str:
    words = {"alarm": "the first alarm", "recertified": "the first new routing"}
    return "".join(
        f" {words[name][0].upper()}{words[name][1:]} came after {seconds:.0f} s." for name, seconds in first_s.items()
    )
