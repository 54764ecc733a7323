"""`fathom capacity`: how many cores, machines and how much money a deployment needs."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fathom import artefacts, show
from fathom.artefacts import check_outputs, expect
from fathom.commands.options import AsJson, BundlePath, takes
from fathom.errors import ConfigError

if TYPE_CHECKING:
    from fathom.edge_profiles.profile import DeviceProfile
    from fathom.tools.capacity.costs import MeasuredCosts
    from fathom.tools.capacity.plan import Plan, Wish

TIMES = {"k": 1e3, "M": 1e6, "B": 1e9}
BINDS = {
    "CPU": "CPU: the core has no time left",
    "p99": "p99: it exceeds what is wanted before the core is full",
    "deadline": "deadline: more than 1 % of the requests are not answered in time",
    "depth": "depth: more requests than allowed get a shallower depth, since the deadline is near",
    "memory": "memory: a machine holds fewer processes than it has cores",
}


@dataclass
class _Wished:
    """Options that say what a deployment is to bear."""

    users: Annotated[str | None, typer.Option(help="Users, as 250000 or 10M.")] = None
    requests_per_user_day: Annotated[float | None, typer.Option(min=0, help="Requests of a user per day.")] = None
    peak_factor: Annotated[float, typer.Option(min=1, help="Requests/s at the peak, by those on average.")] = 3.0
    deadline_ms: Annotated[float, typer.Option(min=0, help="Deadline of every request; 0: none.")] = 100.0
    p99_ms: Annotated[float, typer.Option(min=0.1, help="99 of 100 answers come within this time.")] = 50.0
    most_shallower: Annotated[
        float, typer.Option(min=0, max=1, help="Share of requests that may get a shallower depth than they want.")
    ] = 0.05
    depth: Annotated[int | None, typer.Option(min=0, help="Every request asks for this depth.")] = None
    cache_hits: Annotated[
        float, typer.Option(min=0, max=1, help="Share of requests whose history the prefix cache holds whole.")
    ] = 0.0
    headroom: Annotated[float, typer.Option(min=0, max=0.95, help="Part of each core left free at the peak.")] = 0.3
    cores_per_machine: Annotated[int | None, typer.Option(min=1, help="Default: the profile's.")] = None
    memory_gb_per_machine: Annotated[float | None, typer.Option(min=0.1, help="Default: as much as needed.")] = None
    price_per_machine_hour: Annotated[
        float | None, typer.Option(min=0, help="What you pay for a machine; without it no money is shown.")
    ] = None
    history_events: Annotated[
        int, typer.Option(min=0, max=10_000, help="Events kept per user by the servers; 0: requests bring them.")
    ] = 0

    def wish(self, device: "DeviceProfile") -> "Wish | None":
        """What the model takes, None without users; raises ConfigError."""
        from fathom.tools.capacity.plan import Wish

        if self.users is None and self.requests_per_user_day is None:
            return None
        if self.users is None or not self.requests_per_user_day:
            raise ConfigError("give --users and --requests-per-user-day, both above 0")
        cores = self.cores_per_machine or (device.device.cpu_cores if device.device else None)
        if cores is None:
            raise ConfigError(f"profile {device.name} does not say how many cores it has; give --cores-per-machine")
        given = asdict(self) | {
            "users": _count(self.users),
            "deadline_ms": self.deadline_ms or None,
            "cores_per_machine": cores,
        }
        return Wish(**given)


@takes(wished=_Wished)
def capacity(
    bundle: BundlePath,
    wished: _Wished,
    profile: Annotated[str, typer.Option(help="A profile's name or file, or a tier.")] = "cloud",
    costs: Annotated[
        Path | None, typer.Option(help="JSON of measured costs. Default: beside the bundle, BUNDLE.costs.json.")
    ] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Measure the bundle here, and write that file.")] = False,
    data: Annotated[
        Path | None, typer.Option(help="With --measure: dataset whose histories are asked with. Default: random ones.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, max=60, help="With --measure: of each load.")] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Cores, machines and money for so many users: a queueing model of a server whose costs were measured.

    Measure on a machine like those that will serve, while it does nothing else; that takes a minute or two.

    Example: fathom capacity build/ml-100k/bundle --measure --data build/ml-100k/dataset
    Example: fathom capacity build/ml-100k/bundle --users 10M --requests-per-user-day 20
    """
    path = costs or bundle.with_name(f"{bundle.name}.costs.json")
    if measure:
        check_outputs((path, artefacts.CAPACITY_COSTS), inputs=[bundle, data])

    from fathom.edge_profiles.profile import load_profile
    from fathom.runtime.bundle import read_manifest

    device = load_profile(profile)
    wish = wished.wish(device)
    if wish is None and not measure:
        raise ConfigError("give --users and --requests-per-user-day, or --measure")
    manifest = read_manifest(bundle)
    measured = _measure(bundle, path, profile, data, seconds) if measure else _read(path)
    if wish is None:
        show.result(measured.model_dump(mode="json"), as_json, _show_costs, path, measured)
        return
    measured.check(path, manifest.version, profile)

    from fathom.tools.capacity.plan import plan

    with show.Activity("simulate a core"):
        found = plan(wish, measured, device, manifest.model.max_history)
    show.result(asdict(found), as_json, _show_plan, found, measured)


def _count(text: str) -> float:
    """250000, 250k or 10M; raises ConfigError."""
    number, times = (text[:-1], TIMES[text[-1]]) if text[-1:] in TIMES else (text, 1.0)
    try:
        count = float(number) * times
    except ValueError:
        count = 0.0
    if not 1 <= count <= 1e11:
        raise ConfigError(f"--users {text}: a number above 0, as 250000, 250k or 10M")
    return count


def _measure(bundle: Path, path: Path, profile: str, data: Path | None, seconds: float) -> "MeasuredCosts":
    from fathom.loadtests.traces import read_histories
    from fathom.tools.capacity.measure import ROUTED, Questions
    from fathom.tools.capacity.measure import measure as run

    cases = [] if data is None else [each.items for each in read_histories(data, users=ROUTED)]
    questions = Questions.of(bundle, profile, cases, "" if data is None else f"users of {data.name}")
    with show.Activity(f"measure {bundle}") as activity:
        measured = run(bundle, profile, questions, seconds, activity.update)
    measured.save(path)
    return measured


def _read(path: Path) -> "MeasuredCosts":
    from fathom.tools.capacity.costs import MeasuredCosts

    if not path.exists():
        raise ConfigError(f"{path}: no costs were measured yet; add --measure, on a machine like those that will serve")
    expect(path, artefacts.CAPACITY_COSTS)
    return MeasuredCosts.load(path)


def _show_costs(path: Path, costs: "MeasuredCosts") -> None:
    rows = [
        ("machine", f"{costs.machine}, {costs.created}"),
        ("histories", costs.histories_of),
        ("depths", _mix(costs.mix)),
        ("memory", f"{costs.process_mb:,.0f} MB of a process, {costs.cache_mb:,.0f} MB of it the prefix cache"),
    ]
    show.facts(str(path), rows)
    _show_cells(costs)


def _show_cells(costs: "MeasuredCosts") -> None:
    lengths = sorted({cell.history for cell in costs.cells})
    cells = {(cell.depth, cell.history): cell for cell in costs.cells}
    rows = [["depth", *(f"{length} items" if length else "remembered" for length in lengths)]]
    if costs.count_us is not None:
        rows.append(["0", *[f"{costs.count_us:,.0f}"] * len(lengths)])
    for depth in sorted({cell.depth for cell in costs.cells}):
        row = [cells[depth, length] for length in lengths]
        rows.append([str(depth), *(f"{cell.fixed_us:,.0f} + {cell.each_us:,.0f} n" for cell in row)])
    show.table("Processor time of n requests in one batch, µs", rows)


def _mix(mix: "dict[int, float]") -> str:
    return ", ".join(f"{share:.0%} depth {depth}" for depth, share in mix.items())


def _show_plan(plan: "Plan", costs: "MeasuredCosts") -> None:
    wish, core = plan.wish, plan.core
    spare = f"{1 - wish.headroom:.0%} of that at the peak"
    within = "no deadline" if wish.deadline_ms is None else f"deadline {wish.deadline_ms:g} ms"
    each = (
        f"{wish.users:,.0f} users, {wish.requests_per_user_day:g} requests a day: {plan.mean_per_s:,.0f}/s on average"
    )
    stored = f", {plan.history_gb_per_machine:.1f} GB of it histories" if wish.history_events else ""
    process = f"{costs.process_mb:,.0f} MB a process, {costs.cache_mb:,.0f} MB of it the prefix cache"
    how = "fixed by the request" if wish.depth is not None else "as the server routed them without a deadline"
    rows = [
        ("peak", f"{plan.peak_per_s:,.0f} requests/s ({each}, x {wish.peak_factor:g})"),
        ("depths", f"{_mix(dict(plan.mix))}, {how}"),
        ("histories", f"{costs.histories_of}; {wish.cache_hits:.0%} assumed to be remembered"),
        (
            "one core",
            f"{core.per_s:,.0f} requests/s: p50 {core.p50_ms:.1f} ms, p99 {core.p99_ms:.1f} ms, {core.busy:.0%} busy",
        ),
        ("", f"{within}, {core.shallower:.1%} at a shallower depth than wanted; {spare}"),
        ("binds", BINDS[plan.binds]),
        ("cores", f"{plan.cores:,}, a process on each"),
        ("machines", f"{plan.machines:,} with {wish.cores_per_machine} cores + 1 to spare"),
        ("memory", f"{plan.memory_gb_per_machine:.1f} GB a machine ({process}{stored})"),
    ]
    if plan.price_per_month is not None:
        million = f"{plan.price_per_million:,.2f} per million requests"
        rows.append(
            ("price", f"{plan.price_per_month:,.0f} a month, {million} (at {wish.price_per_machine_hour:g} an hour)")
        )
    rows.append(
        ("measured", f"{costs.bundle} {costs.bundle_version[:12]} as {costs.profile}, {costs.machine}, {costs.created}")
    )
    show.facts("What it takes", rows)
    _show_cells(costs)
