"""The sections of docs/results.md about quality. Each is a function of pooled runs, "" without them."""

from collections.abc import Mapping, Sequence
from itertools import product
from statistics import fmean
from typing import Any

from fathom.benchmarks.experiments.quality.arms import ARMS, DEPTHS, EPOCHS_IN_EQUAL_TIME
from fathom.benchmarks.experiments.quality.stored import Pool, Pooled, dataset_title
from fathom.benchmarks.markdown import decimal, interval, paragraphs, percent, table
from fathom.training.metrics import Interval

ENGINE_DATA = "ml-100k"  # whose network engine_depth measures
CAPTIONS = {
    "quality-depth": "NDCG@10 by depth: one network's exits, and a network for each depth",
    "quality-cost": "NDCG@10 against the measured time of a request",
    "learning-curves": "Validation NDCG@10 of each exit over the epochs, the mean over seeds",
}
PUBLISHED_ML_1M = ["SASRec, 3,000 negatives (arXiv 2309.07602), best figure we know", ".3159", ".1857", "", "", ""]
SYSTEMS = tuple(f"depth {depth}" for depth in DEPTHS)
SHALLOWEST, DEEPEST = ("ladder", SYSTEMS[0]), ("ladder", SYSTEMS[-1])
NON_INFERIORITY, KEPT = -0.02, 0.95
DEPTH_VERDICTS = ("depth pays", "no measurable headroom", "depth costs")
#: The arms in which one network serves every depth, as the page calls them.
ONE_NETWORK = {"ladder": "ladder", "prefix": "healed"}

#: Together, and one on the other.
EXITS_TRAINED = ("ladder", "stacked")

#: Chosen by importance, and what it is compared with.
CHOICES = tuple(
    (start + chosen, start + other)
    for start, chosen, others in (
        ("", "nested-consensus", ("prefix", "nested-random")),
        ("", "permuted-consensus", ("prefix", "permuted-random")),
        ("cut-", "nested-consensus", ("prefix", "nested-random")),
    )
    for other in others
)


def title(pool: Pool) -> str:
    """The name of the pool's data set for a reader."""
    return dataset_title(pool.dataset)


def seeds(count: int) -> str:
    """How many seeds, in words."""
    return "1 seed" if count == 1 else f"{count} seeds"


def quality_sections(pools: Sequence[Pool], engine: Mapping[str, Any] | None, depths: Sequence[Pool] = ()) -> list[str]:
    """All sections, in order. engine: the stored run of engine_depth, None where there is none; depths: arms of equal
    time.
    """
    parts = [_plain_statement(pools), _choice_of_layers(pools), _pictures(pools)]
    about_one = (_all_arms, _deeper, _beside_others, _exits_against_alone, _healed, _ablations, _cold)
    for pool in pools:
        parts += [f"## {title(pool)}", *(about(pool) for about in about_one)]
    return [*parts, _in_equal_time(depths), _compression(pools, engine)]


def pictures(pools: Sequence[Pool]) -> list[str]:
    """The names of the pictures that these runs allow."""
    laddered = [pool.dataset for pool in pools if "ladder" in pool.arms]
    cost = ["quality-cost"] if ENGINE_DATA in laddered else []
    return ["quality-depth", "learning-curves", *cost] if laddered else []


def _pictures(pools: Sequence[Pool]) -> str:
    shown = [f"![{CAPTIONS[name]}](figures/{name}.svg)" for name in pictures(pools)]
    note = "Bars are the 95 % interval of each value alone; whether two values differ is in the paired tables."
    return paragraphs(note, *shown) if shown else ""


def _plain_statement(pools: Sequence[Pool]) -> str:
    lines = []
    for pool in pools:
        gained, kept = pool.difference(DEEPEST, SHALLOWEST), pool.share(SHALLOWEST, DEEPEST)
        if gained is None or kept is None:
            continue
        shown = "shown" if kept.low >= KEPT else "not shown" if kept.value >= KEPT else "missed"
        line = (
            f"- **{title(pool)}** ({seeds(gained.seeds)}): NDCG@10 of depth 16 less depth 4 is"
            f" {interval(gained, signed=True)}: {_verdict(gained, *DEPTH_VERDICTS)}. Depth 4 keeps {percent(kept)} % of"
            f" depth 16; at least {100 * KEPT:.0f} %: {shown}."
        )
        verdicts = {about: [verdict for *_, verdict in _exits(pool, arm)] for arm, about in ONE_NETWORK.items()}
        counts = [f"{about}: {_counted(found)}" for about, found in verdicts.items() if found]
        lines.append(line + (f" Exits against separately trained networks: {'; '.join(counts)}." if counts else ""))
    lines += [f"- Counting: {fact}." for fact in counting_facts(pools)]
    return "\n".join(["## What the figures say\n", *lines]) if lines else ""


def depth_facts(pools: Sequence[Pool]) -> list[str]:
    """On which data sets depth pays, and where it does not, in one line; none without runs."""
    found: dict[str, list[str]] = {verdict: [] for verdict in DEPTH_VERDICTS}
    for pool in pools:
        if (gained := pool.difference(DEEPEST, SHALLOWEST)) is not None:
            found[_verdict(gained, *DEPTH_VERDICTS)].append(title(pool))
    parts = [f"{verdict} on {', '.join(names)}" for verdict, names in found.items() if names]
    return [f"NDCG@10 of depth 16 against depth 4: {'; '.join(parts)}"] if parts else []


def counting_facts(pools: Sequence[Pool]) -> list[str]:
    """Where a counting baseline beats the best depth of the network, user by user, in one line; none without runs."""
    compared, beaten = [], []
    for pool in pools:
        depths = {system: found for system in SYSTEMS if (found := pool.mean(("ladder", system))) is not None}
        counted = [(arm, system) for arm, system in _others(pool) if arm == "baselines"]
        if not depths or not counted:
            continue
        compared.append(title(pool))
        best = max(depths, key=lambda system: depths[system].value)
        for arm, system in counted:
            more = pool.difference((arm, system), ("ladder", best))
            if more is not None and more.low > 0:
                values = (pool.mean((arm, system)), depths[best])
                ours, theirs = (decimal(each.value) if each else "" for each in values)
                beaten.append(f"{system} beats it on {title(pool)} ({ours} against {theirs} NDCG@10 at {best})")
    sets = "1 data set" if len(compared) == 1 else f"{len(compared)} data sets"
    where = f"of {sets}, popularity, EASE and transitions beside the network's best depth"
    return [f"{where}: {'; '.join(beaten) or 'none beats it'}"] if compared else []


def _counted(verdicts: Sequence[str]) -> str:
    return ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))


def _choice_of_layers(pools: Sequence[Pool]) -> str:
    rows = []
    for pool, (chosen, other) in product(pools, CHOICES):
        overall = pool.difference((chosen, *SYSTEMS), (other, *SYSTEMS))
        if overall is not None:
            shallow = pool.difference((chosen, SYSTEMS[0]), (other, SYSTEMS[0]))
            verdict = _verdict(overall, "helped", "no measurable difference", "hurt")
            figures = [interval(each, signed=True) for each in (overall, shallow)]
            rows.append([title(pool), f"`{chosen}`", f"`{other}`", *figures, verdict, str(overall.seeds)])
    head = ["", "layers by importance", "compared with", "NDCG@10, mean over depths", "at depth 4", "choosing", "seeds"]
    about = (
        "Did choosing layers by the ranking help? `nested` runs the most important layers in their order, `permuted`"
        " runs them first, `prefix` takes the first layers; all are healed alike. `cut-` starts from a network that"
        " never had exits."
    )
    return paragraphs(about, table(head, rows)) if rows else ""


def _all_arms(pool: Pool) -> str:
    found = {arm: [pool.mean((arm, system)) for system in SYSTEMS] for arm in _ordered(pool)}
    rows = [[f"`{arm}`", *map(interval, each), *_effort(pool, arm)] for arm, each in found.items() if any(each)]
    return table(["NDCG@10, test item", *SYSTEMS, "seeds", "hours each"], rows)


def _deeper(pool: Pool) -> str:
    """The deeper exits less the first, for the ways of training exits."""
    rows = []
    for arm in EXITS_TRAINED if EXITS_TRAINED[-1] in pool.arms else ():
        less = [pool.difference((arm, system), (arm, SYSTEMS[0])) for system in SYSTEMS[1:]]
        rows.append([f"`{arm}`", *(interval(each, signed=True) for each in less), str(len(pool.of(arm)))])
    return table(["NDCG@10 less that of depth 4", *SYSTEMS[1:], "seeds"], rows) if rows else ""


def _beside_others(pool: Pool) -> str:
    rows = []
    for arm, system in (*(("ladder", system) for system in SYSTEMS), *_others(pool)):
        ndcg = pool.mean((arm, system))
        if ndcg is not None:
            name = f"RecTools {system}" if arm.startswith("rectools-") else system
            less = None if arm == "ladder" else pool.difference(DEEPEST, (arm, system))
            cells = [decimal(mean_hr(pool, arm, system)), interval(ndcg), interval(less, signed=True)]
            rows.append([name, *cells, *_effort(pool, arm)])
    if pool.dataset == "ml-1m":
        rows.append(PUBLISHED_ML_1M)
    return table(["test item", "HR@10", "NDCG@10", "depth 16 less this", "seeds", "hours each"], rows)


def _others(pool: Pool) -> list[tuple[str, str]]:
    """Arm and system of what is no exit of ours: counting baselines and peers."""
    found = ((arm, system) for arm in _ordered(pool) for system in pool.of(arm)[0].systems)
    return [(arm, system) for arm, system in found if not system.startswith("depth ")]


def mean_hr(pool: Pool, arm: str, system: str) -> float:
    """HR@10, the mean over the seeds of an arm."""
    return fmean(run.systems[system]["hr@10"]["value"] for run in pool.of(arm) if system in run.systems)


def _exits(pool: Pool, arm: str) -> list[tuple[str, Pooled, str]]:
    """Depth, its NDCG@10 in this arm relative to the separately trained network less 1, and the verdict."""
    found = []
    for depth, system in zip(DEPTHS, SYSTEMS, strict=True):
        share = pool.share((arm, system), (f"alone-{depth}", system))
        if share is not None:
            relative = Pooled(share.value - 1, share.low - 1, share.high - 1, share.seeds)
            below = "worse" if relative.high < NON_INFERIORITY else "not shown"
            found.append((system, relative, "within 2 %" if relative.low >= NON_INFERIORITY else below))
    return found


def _exits_against_alone(pool: Pool) -> str:
    rows = [
        [f"{about}, {system}", percent(lost, signed=True), verdict, str(lost.seeds)]
        for arm, about in ONE_NETWORK.items()
        for system, lost, verdict in _exits(pool, arm)
    ]
    about = (
        "Each exit against the network that was trained for its depth alone, for as many epochs as the ladder;"
        " healing, which every bundle goes through, adds some:"
    )
    head = ["exit", "NDCG@10 against `alone-`, %", "verdict", "seeds"]
    return paragraphs(about, table(head, rows)) if rows else ""


def _in_equal_time(pools: Sequence[Pool]) -> str:
    rows = []
    for pool, (depth, epochs) in product(pools, EPOCHS_IN_EQUAL_TIME.items()):
        arm = f"time-{depth}", f"depth {depth}"
        if (ndcg := pool.mean(arm)) is not None:
            less = None if depth == DEPTHS[-1] else pool.difference(arm, ("time-16", SYSTEMS[-1]))
            cells = [interval(ndcg), interval(less, signed=True), *_effort(pool, arm[0])]
            rows.append([title(pool), str(depth), str(epochs), *cells])
    about = (
        "How deep should a network be that has a given time to train? Each is trained for its depth alone, for as many"
        " epochs as fit into the time of 16 layers; those above 4 layers grow from 4 for 12 epochs first."
    )
    head = ["", "layers", "epochs", "NDCG@10", "less 16 layers", "seeds", "hours each"]
    return paragraphs("## Depth in equal time", about, table(head, rows)) if rows else ""


def _healed(pool: Pool) -> str:
    everything = "permuted-consensus"
    rows = []
    for arm in ("tune-nothing", "tune-exits", "tune-last-three", "tune-lora", everything):
        if arm in pool.arms:
            name = "everything" if arm == everything else arm.removeprefix("tune-").replace("-", " ")
            means = [pool.mean((arm, system)) for system in SYSTEMS]
            less = None if arm == everything else pool.difference((arm, *SYSTEMS), (everything, *SYSTEMS))
            cells = ["" if mean is None else decimal(mean.value) for mean in means]
            rows.append([name, *cells, interval(less, signed=True), "" if less is None else str(less.seeds)])
    head = ["healed, in the order of `permuted-consensus`", *SYSTEMS, "less everything, mean over depths", "seeds"]
    return table(head, rows) if len(rows) > 1 else ""


def _ablations(pool: Pool) -> str:
    rows = []
    for arm in _ordered(pool):
        overall = pool.difference((arm, *SYSTEMS), ("ladder", *SYSTEMS))
        if overall is not None and arm.startswith(("without-", "with-")):
            ends = [pool.difference((arm, system), ("ladder", system)) for system in (SYSTEMS[0], SYSTEMS[-1])]
            cells = [interval(each, signed=True) for each in (*ends, overall)]
            rows.append([f"`{arm}`", *cells, decimal(_validation(pool, arm), signed=True), str(overall.seeds)])
    head = ["NDCG@10 less `ladder`", "depth 4", "depth 16", "mean over depths", "the same on validation items", "seeds"]
    return table(head, rows)


def _validation(pool: Pool, arm: str) -> float:
    """Validation NDCG@10 less that of the ladder, the mean over depths and the seeds that both have."""
    return fmean(
        run.systems[system]["validation_ndcg@10"] - ladder.systems[system]["validation_ndcg@10"]
        for run in pool.of(arm)
        if (ladder := pool.runs.get(("ladder", run.seed))) is not None
        for system in SYSTEMS
    )


def _compression(pools: Sequence[Pool], engine: Mapping[str, Any] | None) -> str:
    measured = engine["result"]["rows"] if engine else ()
    times = {row["depth"]: row["median_us"] for row in measured if row["history"] == 50}
    rows = []
    for pool, (depth, system) in product(pools, zip(DEPTHS[:-1], SYSTEMS[:-1], strict=True)):
        if (kept := pool.share(("ladder", system), DEEPEST)) is not None:
            shallow, deep = (pool.of("ladder")[0].systems[name]["parameters"] for name in (system, SYSTEMS[-1]))
            smaller = (sum(deep.values()) / sum(shallow.values()), deep["layers"] / shallow["layers"])
            faster = f"{times[16] / times[depth]:.1f}x" if times and pool.dataset == ENGINE_DATA else ""
            cells = [*(f"{ratio:.2f}x" for ratio in smaller), percent(kept), faster]
            rows.append([title(pool), system, *cells, str(kept.seeds)])
    head = ["", "", "parameters", "layers alone", "quality kept, %", "speed-up", "seeds"]
    about = (
        "Depth 16 against a shallower exit of the ladder. Parameters: layers, exit and item embeddings; a process saves"
        " far less memory than that, because most of its memory is not the network's: see Precision, below. Quality:"
        " NDCG@10; speed-up: one request inside the engine, history 50, one thread, measured for MovieLens-100K."
    )
    return paragraphs("## Compression", about, table(head, rows)) if rows else ""


def _cold(pool: Pool) -> str:
    """By how often the target was seen in training, for the runs that store it."""
    rows = []
    for (arm, seed), run in pool.runs.items():
        for group, found in run.value["result"].get("cold", {}).items():
            for system, figures in found["systems"].items():
                ndcg, less = (Interval(**figures[key]) for key in ("ndcg@10", "difference"))
                cells = [interval(ndcg), "" if system == "ladder" else interval(less, signed=True)]
                rows.append([f"`{arm}`, seed {seed}", group, f"{found['cases']:,}", system, *cells])
    head = ["", "training events of the target", "cases", "system", "NDCG@10", "less `ladder`"]
    return table(head, rows)


def _ordered(pool: Pool) -> list[str]:
    """The arms in the order in which they are defined, others after them."""
    names = [*ARMS]
    return sorted(pool.arms, key=lambda arm: names.index(arm) if arm in names else len(names))


def _effort(pool: Pool, arm: str) -> list[str]:
    runs = pool.of(arm)
    return [str(len(runs)), f"{fmean(run.value['result']['hours'] for run in runs):.2f}"]


def _verdict(value: Interval, above: str, between: str, below: str) -> str:
    return above if value.low > 0 else below if value.high < 0 else between
