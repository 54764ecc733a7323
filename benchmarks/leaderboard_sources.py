"""What the leaderboard shows of which benchmark: each stored run as rows."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median

from fathom.benchmarks.experiments import counting_quality
from fathom.benchmarks.experiments.quality.stored import Pool, dataset_title, pools
from fathom.benchmarks.leaderboard import Row, Source
from fathom.benchmarks.record import load_run
from fathom.benchmarks.registry import StoredRun
from fathom.benchmarks.systems.peers.stored import Figures, Measured
from fathom.benchmarks.systems.peers.turns import FATHOM
from fathom.training.baselines import BASELINES

#: Depths at which systems are compared.
DEPTHS = (4, 16)
BY_HAND = "grpc.aio by hand"
ECHO = "grpc.aio echo"

Range = tuple[float, float]


def higher(system: str, depth: int | None, measure: str, value: float, over: Range | None = None) -> Row:
    """More is better."""
    low, high = over or (None, None)
    return Row(system, depth, measure, value, low, high, "higher")


def lower(system: str, depth: int | None, measure: str, value: float, over: Range | None = None) -> Row:
    """Less is better."""
    return higher(system, depth, measure, value, over)._replace(better="lower")


def of_peers(run: StoredRun) -> Iterator[Row]:
    """Fixed depths beside everything that a user could pick instead."""
    measured, config = Measured.of(run), run["config"]
    busy, within = f"{config['in_flight']} in flight", f"answers/s within {config['within_ms']} ms"
    for side in (FATHOM, *measured.peers):
        name = {FATHOM: "Fathom", "by hand": BY_HAND}.get(side, side)
        for depth in DEPTHS:
            for better, measure, figures in (
                (higher, f"requests/s, {busy}", measured.closed(side, depth, "busy", "requests_per_s")),
                (lower, f"CPU µs of a request, {busy}", measured.closed(side, depth, "busy", "cpu_us")),
                (lower, "p50 ms, one in flight", measured.closed(side, depth, "alone", "p50_ms")),
                (higher, f"{within}, at the best load", measured.best(side, depth)),
            ):
                yield from _over_turns(better, name, depth, measure, figures)
        yield from _over_turns(lower, name, None, "MB of memory", measured.side(side, "memory_mb"))
        yield from _over_turns(lower, name, None, "seconds from start to ready", measured.side(side, "start_s"))


def _over_turns(
    better: Callable[..., Row], name: str, depth: int | None, measure: str, figures: Figures
) -> Iterator[Row]:
    """The median of the turns that have a figure; no row where none has."""
    known = [figure for figure in figures if figure is not None]
    if known:
        yield better(name, depth, measure, median(known), (min(known), max(known)))


def of_front(run: StoredRun) -> Iterator[Row]:
    """The server beside an echo, which bounds it, and one call at a time beside a server by hand."""
    names = {"http2": "Fathom", "aio": "Fathom, transport aio", "by hand": BY_HAND, "echo": ECHO}
    result, in_flight = run["result"], run["config"]["in_flight"]
    for depth in DEPTHS:
        for side, row in result[f"depth_{depth}"].items():
            found = higher(
                names[side], depth, f"requests/s, {in_flight} in flight", row["requests_per_s"], row["requests_range"]
            )
            yield found._replace(bound=side == "echo")
    for side, row in result["alone"].items():
        for measure, key, over in (
            ("p50 ms", "p50_ms", "p50_range_ms"),
            ("CPU µs of a request", "cpu_us", "cpu_range_us"),
        ):
            found = lower(names[side], DEPTHS[0], f"{measure}, one in flight", row[key], row[over])
            yield found._replace(bound=side == "echo")


def of_overload(run: StoredRun) -> Iterator[Row]:
    """Answers in time under more load than a server can bear, and the most that one core could give."""
    arms = {"http2, with depth 0": "Fathom", "http2, without depth 0": "Fathom without depth 0"}
    within_ms = run["config"]["deadline_ms"]
    for place, row in enumerate(run["result"]["arms"]["http2, with depth 0"]["rows"]):
        if row["factor"] <= 1:
            continue
        measure = f"answers/s within {within_ms:g} ms, at {row['factor']:g} times what depth 16 bears"
        yield higher("possible on one core", None, measure, row["possible_per_s"])._replace(bound=True)
        for arm, name in arms.items():
            found = run["result"]["arms"][arm]["rows"][place]
            yield higher(name, None, measure, found["goodput_per_s"], found["goodput_range"])


def of_triton(run: StoredRun) -> Iterator[Row]:
    """The repository that Fathom writes beside a model by hand, both in Triton."""
    names = {"fathom": "Fathom in Triton", "by-hand": "by hand in Triton"}
    for row in run["result"]["rows"]:
        name, load = names[row["model"]], f"{row['in_flight']} in flight"
        yield higher(name, row["depth"], f"requests/s, {load}", row["requests_per_s"])
        yield lower(name, row["depth"], f"p50 ms, {load}", row["p50_ms"])


def of_retrieval(run: StoredRun) -> Iterator[Row]:
    """Exact search beside faiss; of Fathom's searches the one without a filter, as faiss has none."""
    names = {"fathom": "Fathom", "faiss flat": "faiss flat"}
    config = run["config"]
    for row in run["result"]["rows"]:
        if row["search"] in names:
            measure = f"ms of the best {config['best']} of {config['items']:,} items, {row['batch']} at once"
            yield lower(names[row["search"]], None, measure, row["median_ms"])


def of_client(run: StoredRun) -> Iterator[Row]:
    """What a call costs the caller, beside gRPC's own stubs, one at a time."""
    names = {"Client": "Fathom's Client", "stub": "gRPC stub"}
    names |= {"AsyncClient": "Fathom's AsyncClient", "asyncio stub": "gRPC asyncio stub"}
    for row in run["result"]["rows"]:
        if row["way"] in names:
            kind = "asyncio" if "sync" in row["way"] else "blocking"
            measure = f"CPU µs of a call in the caller's process, {kind}"
            yield lower(names[row["way"]], None, measure, row["cpu_us"], row["cpu_us_range"])


def of_training(run: StoredRun) -> Iterator[Row]:
    """Events per second of training, beside the straightforward loop."""
    names = {
        "fathom": "Fathom",
        "straightforward": "straightforward loop",
        "same batches": "the same on Fathom's batches",
    }
    for row in run["result"]["rows"]:
        for side, name in names.items():
            yield higher(name, None, f"training events/s, {row['preset']}, {row['stage']}", row["events_per_s"][side])


def of_four_models(run: StoredRun) -> Iterator[Row]:
    """Memory and disk of a server with four depths, beside one that holds four models."""
    for case in run["result"]["cases"]:
        for side, row in case["sides"].items():
            yield lower(side, None, f"MB of memory (PSS), {case['name']}", row["pss_mb"], row["pss_range_mb"])
            yield lower(side, None, f"MB on disk, {case['name']}", row["disk_mb"])


def of_pool(pool: Pool, arm: str, others: Mapping[tuple[str, str], str]) -> Iterator[Row]:
    """NDCG@10 of exits of an arm, and of others (arm and system -> name).

    The range of another is the interval of its difference to the exit, user by user, put around the exit's value.
    """
    for depth in DEPTHS:
        exit_of, measure = (arm, f"depth {depth}"), f"NDCG@10, {dataset_title(pool.dataset)}"
        if (ours := pool.mean(exit_of)) is None:
            continue
        yield higher("Fathom", depth, measure, ours.value)
        for other, name in others.items():
            found, more = pool.mean(other), pool.difference(other, exit_of)
            if found and more:
                yield higher(name, depth, measure, found.value, (ours.value + more.low, ours.value + more.high))


def _baselines(_: Pool) -> dict[tuple[str, str], str]:
    return {(counting_quality.ARM, name): name for name in BASELINES}


def _others(pool: Pool) -> dict[tuple[str, str], str]:
    return {
        (arm, system): f"RecTools {system}" if arm.startswith("rectools-") else system
        for arm in pool.arms
        for system in pool.of(arm)[0].systems
        if not system.startswith("depth ")
    }


def of_quality(
    title: str, study: str, arm: str, others: Callable[[Pool], dict[tuple[str, str], str]], said: str
) -> Source:
    """A source of all data sets of a study."""

    def rows(folder: Path) -> list[Row]:
        found = [of_pool(pool, arm, others(pool)) for pool in pools(folder, study=study)]
        return [row for each in found for row in each]

    def skipped(folder: Path) -> str:
        there: dict[str, set[str]] = {}
        for row in rows(folder):
            there.setdefault(row.measure, set()).add(row.system)
        everyone = set().union(*there.values())
        gaps = [
            f"{', '.join(sorted(everyone - systems))} on {measure.partition(', ')[2]}"
            for measure, systems in there.items()
            if everyone - systems
        ]
        return f"Not measured: {'; '.join(gaps)}." if gaps else ""

    return Source(title, f"{study}/", rows, lambda _: f"{QUALITY} {said}", skipped)


QUALITY = (
    "NDCG@10 of the test items, full ranking. The range of another system is the 95 % interval of its difference to the"
    " exit, user by user over the seeds that both have, put around the exit's value."
)


def of_run(
    title: str,
    stored: str,
    rows: Callable[[StoredRun], Iterator[Row]],
    about: str,
    skipped: Callable[[StoredRun], str] = lambda _: "",
) -> Source:
    """A source of one stored run; ``about`` may name keys of its config."""

    def load(folder: Path) -> StoredRun:
        return load_run(folder / f"{stored}.json")

    return Source(
        title,
        f"{stored}.json",
        lambda folder: rows(load(folder)),
        lambda folder: about.format(**load(folder)["config"]),
        lambda folder: skipped(load(folder)),
    )


#: In the order of the page.
SOURCES = (
    *(
        of_run(
            title,
            stored,
            of_peers,
            "The same engines and item vectors behind every server, and the same items in every answer; bundle"
            " {bundle}, histories of {mean_history:g} items in the mean; server and client on a core each, medians of"
            " {turns} turns.",
            lambda run: "; ".join(run["config"]["left_out"]),
        )
        for title, stored in (
            ("Servers at fixed depths", "peers"),
            ("Servers at fixed depths, width 128", "peers-wide"),
        )
    ),
    of_run(
        "The server beside an echo",
        "front",
        of_front,
        "Bundle {bundle}, histories of {history} items, all of them new; server and client on a core each, medians of"
        " {turns} turns. The echo answers every request with the same message.",
    ),
    of_run(
        "More load than the server can bear",
        "overload",
        of_overload,
        "Bundle {bundle}, histories of {mean_history:g} items in the mean; Poisson arrivals, each request wants its"
        " answer within {deadline_ms:g} ms; medians of {turns} turns. Each row is offered multiples of what it bears at"
        " depth 16 itself.",
    ),
    of_run(
        "In Triton",
        "triton",
        of_triton,
        "Bundle {bundle}, histories of {mean_history:g} items in the mean; server and client on a core each, medians of"
        " {turns} turns, of which no range was stored.",
    ),
    of_run(
        "Exact search",
        "retrieval",
        of_retrieval,
        "Random vectors of width {width}, one thread, medians of {rounds} rounds.",
    ),
    of_run(
        "A call from Python",
        "client",
        of_client,
        "Bundle {bundle}, depth {depth}, histories of {history} items, one call at a time, medians of {rounds} rounds.",
    ),
    of_run(
        "Memory for four depths",
        "four_models",
        of_four_models,
        "One server with depths {depths}, beside one by hand that holds a model for each of them; medians of {starts}"
        " starts.",
    ),
    of_run(
        "Training",
        "training_throughput",
        of_training,
        "The same model and data, {threads} threads, medians of {turns} turns, of which no range was stored.",
    ),
    of_quality("Quality as served", counting_quality.NAME, counting_quality.ARM, _baselines, "With the counting exit."),
    of_quality("Quality of the network alone", "quality", "ladder", _others, "Without the counting exit."),
)
