"""What a soak of all kinds of calls is judged by: each check has a figure and a limit, and what is missing fails.

The checks are stored with the run, and made anew from its figures when it is shown: a run whose stored checks are not
those that its figures give is refused.
"""

from collections.abc import Mapping
from statistics import median
from typing import Any, NamedTuple

from fathom.benchmarks.registry import StoredRun
from fathom.benchmarks.systems.soak.mixed import SHARES
from fathom.errors import ArtefactError

MOST_RSS_GROWN = 0.02
MOST_P99_GROWN = 0.25
MOST_LEVEL_GROWN = 0.05
#: Of all calls: more, and it is overload that was measured.
MOST_REFUSED = 0.01
#: Of a core: beyond it the client may be what is slow.
MOST_CLIENT_CPU = 0.7
#: Of the reloads and kills that were asked for.
LEAST_DISTURBED = 0.8

Config = Mapping[str, Any]
Result = Mapping[str, Any]


class Check(NamedTuple):
    """``value``: None where the run has none, which fails; ``at_least``: the limit is the least, not the most."""

    what: str
    value: float | None
    limit: float
    at_least: bool = False

    @property
    def passed(self) -> bool:
        """Whether the value is there and within the limit; what is no number is not."""
        if self.value is None:
            return False
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def to_json(self) -> dict[str, Any]:
        """As it is stored."""
        return {**self._asdict(), "passed": self.passed}


def judge(config: Config, result: Result) -> list[Check]:
    """All checks of a run of all kinds of calls."""
    return [
        *_calls(config, result),
        *_disturbed(config, result),
        *_growth(config, result),
        Check("cores that the client used", result["client_cpu"], MOST_CLIENT_CPU),
        *_alarms(config, result["alarms"]),
    ]


def _calls(config: Config, result: Result) -> list[Check]:
    answered = {kind for kind, found in result["kinds"].items() if found["statuses"].get("OK")}
    silent = [method for method, count in result["called"].items() if not count]
    if not config["reloads"]:
        silent = [method for method in silent if method != "Reload"]
    refused = result["refused"] / result["requests"] if result["requests"] else None
    return [
        Check("calls that failed, refused by no rule and in no killed worker", result["failed_without_a_kill"], 0),
        Check("share of calls refused by rule", refused, MOST_REFUSED),
        Check("kinds of calls without an answer", len(SHARES.keys() - answered), 0),
        Check("methods of the service without an answer", len(silent), 0),
        Check("minutes without an answer", sum(row["p99_ms"] is None for row in result["rows"]), 0),
        Check("minutes measured", len(result["rows"]), config["minutes"], at_least=True),
    ]


def _disturbed(config: Config, result: Result) -> list[Check]:
    hours = config["minutes"] / 60
    return [
        Check("reloads that failed", len(result["exchange_errors"]), 0),
        Check("bundles exchanged", result["exchanged"], round(LEAST_DISTURBED * config["reloads"] * hours), True),
        Check("workers killed", result["kills"], round(LEAST_DISTURBED * config["kills"] * hours), True),
    ]


def _growth(config: Config, result: Result) -> list[Check]:
    memory, rows = result["memory"], result["rows"]
    third = max(1, len(rows) // 3)
    checks = [Check("growth of resident memory, parent", memory["parent"]["grown"], MOST_RSS_GROWN)]
    if config["workers"] > 1:
        stayed = memory["never_killed"]
        grown = None if stayed is None else stayed["grown"]
        checks.append(Check("growth of resident memory, workers never killed", grown, MOST_RSS_GROWN))
    p99 = result["p99_ms_last_third"] / result["p99_ms_first_third"] - 1
    checks.append(Check("growth of p99", round(p99, 4), MOST_P99_GROWN))
    for what, name in (("threads", "threads"), ("files", "open files")):
        first, last = (median(row[what] for row in part) for part in (rows[:third], rows[-third:]))
        checks.append(Check(f"growth of {name}", round(last / first - 1, 4), MOST_LEVEL_GROWN))
    return checks


def _alarms(config: Config, alarms: Mapping[str, Any]) -> list[Check]:
    """No checks where no certificate routes requests, or the run is too short to change its traffic."""
    if not alarms["certified"] or config["minutes"] < 3:
        return []
    new = alarms["new"]
    return [
        Check("times a new alarm was seen while traffic was another", new["alarm"], 1, at_least=True),
        Check("times a routing certified anew was seen meanwhile", new["recertified"], 1, at_least=True),
    ]


def checked(run: StoredRun) -> list[Check]:
    """The checks of a stored run; raises ArtefactError where they are not those that its figures give."""
    found = judge(run["config"], run["result"])
    if run["result"].get("checks") != [each.to_json() for each in found]:
        raise ArtefactError(f"{run['name']}: its checks are not those that its figures give; measure it again")
    return found
