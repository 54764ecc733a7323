"""The verdict of a build: what it ships, what that beats on the test items, what beats it, and whether depth pays."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fathom.exporter.bundle.report import format_interval
from fathom.runtime.manifest import MetricInterval

#: With fewer test users the 95 % interval of NDCG@10 is about .1 wide, as wide as the figures are large.
FEWEST_USERS = 100
METRIC = "ndcg@10"


def verdict(evaluation: Mapping[str, Any], strategy: str, depths: Sequence[int], bundle: Path) -> str:
    """A sentence from ``evaluation.json`` of the checkpoint that the bundle came from, and one about its depths.

    A baseline beats the deepest depth, or is beaten by it, where the 95 % interval of their difference over the same
    users leaves out 0; so does a shallower depth.
    """
    ships = f"{bundle} ships the {strategy} plan at {_listed(depths, 'depth', 'depths')}"
    users = int(evaluation["cases"])
    if users < FEWEST_USERS:
        return (
            f"{ships}, but {users} test {'user is' if users == 1 else 'users are'} too few for its figures to mean"
            f" anything: build it from data with at least {FEWEST_USERS} users who have three events or more."
        )
    differences = {
        name: MetricInterval(**system["difference"][METRIC])
        for name, system in evaluation["systems"].items()
        if not name.startswith("depth ")
    }
    better = {name: found for name, found in differences.items() if found.low > 0}
    beaten = [name for name, found in differences.items() if found.high < 0]
    equal = [name for name in differences if name not in better and name not in beaten]
    found = [f"beats {_listed(beaten)}"] if beaten else []
    found += [f"is not measurably better or worse than {_listed(equal)}"] if equal else []
    if better:
        found.append(f"is beaten by {_listed([f'{name} by {format_interval(by)}' for name, by in better.items()])}")
        advice = "train for more epochs (--set train.epochs=N) or on more data, or use that simpler method instead"
    elif equal:
        advice = "ask whether that simpler method is enough before you run `fathom serve`"
    else:
        advice = f"serve it with `fathom serve {bundle}`"
    judged = f"in NDCG@10 of {evaluation['reference']} on {users:,} test users"
    pays = depth_verdict(evaluation, depths, bundle)
    which = "which" if evaluation["reference"] == f"depth {max(depths)}" else "cut from a network that"
    return f"{ships}, {which} {_listed(found)}, {judged}: {advice}.{f' {pays}' if pays else ''}"


def depth_verdict(evaluation: Mapping[str, Any], depths: Sequence[int], bundle: Path) -> str:
    """Whether a bundle's deepest depth pays, as its depths are served; "" where nothing shallower was judged with it.

    It does unless a shallower depth is not measurably worse; the shallowest of those is then the one to ship. Depth 0,
    counting alone, is spoken of only where it is not measurably worse, as no bundle is cut to it.
    """
    *shallower, deepest = sorted(depths)
    if evaluation["reference"] != f"depth {deepest}":
        return ""
    systems = evaluation["systems"]

    def less(depth: int) -> MetricInterval:
        return MetricInterval(**systems[f"depth {depth}"]["difference"][METRIC])

    if "depth 0" in systems and less(0).high >= 0:
        counted = _no_gain("depth 0, which counts and runs no network,", less(0), deepest)
        said = f"{counted}; requests with depth 0 get it"
        cut = f", and {_cut(bundle, shallower[:1])} the shallowest network for the others" if shallower else ""
        return f"{said}{cut}."
    if not shallower:
        return ""
    enough = next((depth for depth in shallower if less(depth).high >= 0), None)
    if enough is None:
        first, behind = shallower[0], less(shallower[0])
        lead = MetricInterval(value=-behind.value, low=-behind.high, high=-behind.low)
        return f"Depth pays: depth {deepest} is ahead of depth {first} by {format_interval(lead)}."
    cut = _cut(bundle, [depth for depth in shallower if depth <= enough])
    found = _no_gain(f"depth {enough}", less(enough), deepest)
    return f"{found}; {cut} the shallower network."


def _no_gain(shallower: str, less: MetricInterval, deepest: int) -> str:
    costs = "costs" if less.low > 0 else "does not pay"
    return f"Depth {costs} here: {shallower} less depth {deepest} is {format_interval(less)}"


def _cut(bundle: Path, depths: Sequence[int]) -> str:
    return f"`fathom bundle slice {bundle} --depths {','.join(map(str, depths))} --out SMALLER` cuts"


def _listed(names: Sequence[object], one: str = "", more: str = "") -> str:
    *first, last = map(str, names)
    text = f"{', '.join(first)} and {last}" if first else last
    return f"{more if first else one} {text}".strip()
