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


@dataclass
class _Wished:
    """Options that say what a deployment is to bear."""

    users: Annotated[str | None, typer.Option(metavar="N", help="Users, as 250000 or 10M.")] = None
    requests_per_day: Annotated[float | None, typer.Option(metavar="N", help="Requests of a user per day.")] = None
    peak_factor: Annotated[float, typer.Option(metavar="N", help="Requests/s at the peak, by those on average.")] = 3.0
    deadline_ms: Annotated[float, typer.Option(metavar="MS", help="Deadline of every request; 0: none.")] = 100.0
    p99_ms: Annotated[float, typer.Option(metavar="MS", help="99 of 100 answers come within this time.")] = 50.0
    most_shallower: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of requests that may get a shallower depth than they want.")
    ] = 0.05
    depth: Annotated[int | None, typer.Option(metavar="N", help="Every request asks for this depth.")] = None
    cache_hits: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of requests whose history the prefix cache holds whole.")
    ] = 0.0
    headroom: Annotated[float, typer.Option(metavar="SHARE", help="Part of each core left free at the peak.")] = 0.3
    cores_per_machine: Annotated[int | None, typer.Option(metavar="N", help="Default: as the profile says.")] = None
    memory_gb: Annotated[
        float | None, typer.Option(metavar="GB", help="Memory of a machine. Default: as much as is needed.")
    ] = None
    price_per_hour: Annotated[
        float | None, typer.Option(metavar="PRICE", help="What a machine costs; without it no money is shown.")
    ] = None
    history_events: Annotated[
        int, typer.Option(metavar="N", help="Events kept per user by the servers; 0: requests bring them.")
    ] = 0

    def wish(self, device: "DeviceProfile") -> "Wish | None":
        """What the model takes, None without users; raises ConfigError."""
        from fathom.tools.capacity.plan import Wish

        if self.users is None and self.requests_per_day is None:
            return None
        if self.users is None or self.requests_per_day is None:
            raise ConfigError("--users and --requests-per-day belong together; give both")
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
    seconds: Annotated[float, typer.Option(min=0.1, max=60, help="With --measure: length of each load.")] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Cores, machines and money for so many users: a queueing model of a server whose costs were measured.

    Measure on a machine like those that will serve, while it does nothing else; that takes a minute or two.

    Example: fathom capacity build/ml-100k/bundle --measure --data build/ml-100k/dataset
    Example: fathom capacity build/ml-100k/bundle --users 10M --requests-per-day 20
    """
    path = costs or bundle.with_name(f"{bundle.name}.costs.json")
    if measure:
        check_outputs((path, artefacts.CAPACITY_COSTS), inputs=[bundle, data])

    from fathom.edge_profiles.profile import load_profile
    from fathom.runtime.manifest_file import read_manifest

    device = load_profile(profile)
    wish = wished.wish(device)
    if wish is None and not measure:
        raise ConfigError("give --users and --requests-per-day, or --measure")
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
    if not count:
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
    from fathom.tools.capacity.report import COSTS_TITLE, cost_rows, measured_facts

    show.facts(str(path), measured_facts(costs))
    show.table(COSTS_TITLE, cost_rows(costs.cells, costs.count_us))


def _show_plan(plan: "Plan", costs: "MeasuredCosts") -> None:
    from fathom.tools.capacity.report import COSTS_TITLE, cost_rows, plan_facts

    show.facts("What it takes", plan_facts(plan, costs))
    show.table(COSTS_TITLE, cost_rows(costs.cells, costs.count_us))
