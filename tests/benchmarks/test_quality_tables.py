"""The sections and pictures about quality say what the stored places say, and nothing about arms that have no run."""

from typing import Any

import numpy as np
import pytest

from fathom.benchmarks.experiments.drawing import svg
from fathom.benchmarks.experiments.quality import plots
from fathom.benchmarks.experiments.quality.stored import Pool, QualityRun, summary
from fathom.benchmarks.experiments.quality.tables import counting_facts, depth_facts, quality_sections

DEPTHS = (4, 8, 12, 16)
USERS = 200
ENGINE = {"result": {"rows": [{"history": 50, "depth": depth, "median_us": 100.0 * depth} for depth in DEPTHS]}}


def places(found: int, place: float = 1.0) -> Any:
    """The first users' items stand at this place, the others' are missed."""
    return np.where(np.arange(USERS) < found, place, np.inf)


def exit_of(depth: int, found: int) -> dict[str, Any]:
    parameters = {"layers": 100 * depth, "exit": 0, "items": 400}
    return summary(places(found)) | {"validation_ndcg@10": found / USERS, "parameters": parameters}


def run_of(arm: str, seed: int, found: dict[int, int], dataset: str = "ml-100k", **more: Any) -> QualityRun:
    """found: how many users are answered rightly at each depth."""
    systems = {f"depth {depth}": exit_of(depth, count) for depth, count in found.items()}
    return QualityRun(
        dataset, arm, seed, {"config": {"dataset": "sha"}, "result": {"systems": systems, "hours": 0.5, **more}}
    )


def ladder(seed: int, found: dict[int, int]) -> QualityRun:
    training = [{"stage": "grow", "epoch": 2, "validation_ndcg@10": {"4": 0.4 + seed}}]
    training += [{"stage": "train", "epoch": 2, "validation_ndcg@10": {str(depth): 0.5 for depth in DEPTHS}}]
    return run_of("ladder", seed, found, training=training)


LEVEL, RISING = dict.fromkeys(DEPTHS, 80), {4: 60, 8: 70, 12: 75, 16: 80}


def page(*runs: QualityRun) -> str:
    return "\n\n".join(quality_sections([Pool("ml-100k", runs)], ENGINE))


def row(text: str, start: str) -> list[str]:
    """The cells of the first table row that starts like this."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_depth_pays_only_where_the_interval_leaves_zero_out() -> None:
    rising, level = page(ladder(0, RISING)), page(ladder(0, LEVEL), ladder(1, LEVEL))
    assert "(1 seed): NDCG@10 of depth 16 less depth 4 is +.1000" in rising
    assert "depth pays. Depth 4 keeps 75.0" in rising
    assert "at least 95 %: missed" in rising
    assert "(2 seeds): NDCG@10 of depth 16 less depth 4 is +.0000 [+.0000, +.0000]: no measurable headroom" in level
    assert "at least 95 %: shown" in level


def test_each_exit_is_judged_against_the_network_of_its_depth() -> None:
    alone = [run_of("alone-4", 0, {4: 90}), run_of("alone-8", 0, {8: 81}), run_of("alone-16", 0, {16: 80})]
    text = page(ladder(0, LEVEL), run_of("prefix", 0, RISING), *alone).partition("Each exit against")[2]
    assert row(text, "ladder, depth 4")[1].startswith("-11.1 [")
    assert row(text, "ladder, depth 4")[2:] == ["worse", "1"]
    assert row(text, "ladder, depth 8")[2] == "not shown"
    assert row(text, "ladder, depth 16")[1:] == ["+0.0 [+0.0, +0.0]", "within 2 %", "1"]
    assert row(text, "healed, depth 4")[2] == "worse"


def test_choosing_layers_is_compared_with_the_first_layers_and_with_chance() -> None:
    runs = [run_of("nested-consensus", 0, LEVEL), run_of("prefix", 0, RISING), run_of("nested-random", 0, LEVEL)]
    text = page(*runs)
    against = {
        cells[2]: cells[5]
        for cells in (line.strip("|").split(" | ") for line in text.splitlines())
        if len(cells) == 7 and cells[1] == "`nested-consensus`"
    }
    assert against == {"`prefix`": "helped", "`nested-random`": "no measurable difference"}


def test_healing_and_ablations_are_differences_to_everything_and_to_the_ladder() -> None:
    healed = [run_of("permuted-consensus", 0, LEVEL), run_of("tune-lora", 0, RISING)]
    text = page(ladder(0, LEVEL), *healed, run_of("without-growth", 0, RISING))
    assert row(text, "lora")[1] == ".3000"
    assert row(text, "lora")[5].startswith("-.043")
    tried = row(text.partition("NDCG@10 less `ladder`")[2], "`without-growth`")
    assert tried[1].startswith("-.1000 [")
    assert tried[2:] == ["+.0000 [+.0000, +.0000]", tried[3], "-.0438", "1"]


def test_compression_is_measured_in_parameters_quality_and_engine_time() -> None:
    cells = row(page(ladder(0, RISING)).partition("## Compression")[2], "MovieLens-100K")
    assert cells[1:4] == ["depth 4", "2.50x", "4.00x"]  # (1600 + 400) / (400 + 400) parameters
    assert cells[4].startswith("75.0 [")
    assert cells[5:] == ["4.0x", "1"]


def test_baselines_and_peers_stand_below_the_ladder_and_missing_arms_are_absent() -> None:
    counted = {"systems": {"EASE": summary(places(40, 3.0))}, "hours": 0.0}
    peer = {"systems": {"SASRec": summary(places(50))}, "hours": 2.0}
    others = [
        QualityRun("ml-100k", name, 0, {"config": {"dataset": "sha"}, "result": result})
        for name, result in (("baselines", counted), ("rectools-sasrec", peer))
    ]
    text = page(ladder(0, LEVEL), *others)
    assert row(text, "EASE")[1:2] == [".2000"]
    assert row(text, "EASE")[2].startswith(".1000 [")
    assert row(text, "EASE")[3].startswith("+.")
    assert row(text, "RecTools SASRec")[4:] == ["1", "2.00"]
    assert text.index("| depth 16 |") < text.index("| EASE |") < text.index("| RecTools SASRec |")
    for absent in ("alone-4", "prefix", "healed", "without-", "cut-"):
        assert f"`{absent}" not in text
    assert "nan" not in text


def test_counting_that_beats_the_best_depth_is_said_and_so_is_where_depth_pays() -> None:
    def counted(dataset: str, found: int) -> QualityRun:
        result = {"systems": {"EASE": summary(places(found))}, "hours": 0.0}
        return QualityRun(dataset, "baselines", 0, {"config": {"dataset": "sha"}, "result": result})

    level = run_of("ladder", 0, LEVEL, dataset="beauty")
    better, worse = counted("beauty", 120), counted("ml-100k", 79)
    pools = [Pool("ml-100k", [ladder(0, RISING), worse]), Pool("beauty", [level, better]), Pool("retail", [level])]
    beside = "popularity, EASE and transitions beside the network's best depth"
    beaten = "EASE beats it on Amazon Beauty (.6000 against .4000 NDCG@10 at depth 4)"
    assert counting_facts(pools) == [f"of 2 data sets, {beside}: {beaten}"]
    assert counting_facts(pools[:1]) == [f"of 1 data set, {beside}: none beats it"]
    assert counting_facts(pools[2:]) == []
    assert depth_facts(pools) == [
        "NDCG@10 of depth 16 against depth 4: depth pays on MovieLens-100K;"
        " no measurable headroom on Amazon Beauty, Online Retail II"
    ]
    assert depth_facts([]) == []
    assert beaten in "\n".join(quality_sections(pools, ENGINE))


def test_cold_items_are_shown_where_a_run_holds_them() -> None:
    figure = {"value": 0.25, "low": 0.125, "high": 0.5}
    groups = {"0": {"cases": 1200, "systems": {"text": {"ndcg@10": figure, "difference": figure}}}}
    cells = row(page(run_of("text", 0, LEVEL, cold=groups)), "`text`, seed 0")
    assert cells[1:] == ["0", "1,200", "text", ".2500 [.1250, .5000]", "+.2500 [+.1250, +.5000]"]


def test_the_same_runs_give_the_same_pictures_without_a_date() -> None:
    def drawn() -> dict[str, bytes]:
        pool = Pool("ml-100k", [ladder(0, RISING), ladder(1, LEVEL), run_of("alone-4", 0, {4: 80})])
        return {name: svg(figure) for name, figure in plots.figures([pool], ENGINE).items()}

    first = drawn()
    assert [*first] == ["quality-depth", "learning-curves", "quality-cost"]
    assert drawn() == first
    assert all(b"dc:date" not in picture and b"MovieLens-100K, 2 seeds" in picture for picture in first.values())
    assert plots.figures([Pool("ml-100k", [run_of("prefix", 0, LEVEL)])], ENGINE) == {}


def test_a_learning_curve_is_the_mean_over_seeds_and_stages_follow_each_other() -> None:
    curves, starts = plots.learning_curves(Pool("ml-100k", [ladder(0, LEVEL), ladder(1, LEVEL)]))
    assert curves["4"] == [(2, pytest.approx(0.9)), (4, 0.5)]
    assert curves["16"] == [(4, 0.5)]
    assert starts == [2]


def test_stacked_exits_are_shown_beside_those_that_are_trained_together() -> None:
    found = page(ladder(0, LEVEL), run_of("stacked", 0, RISING))
    assert "NDCG@10 less that of depth 4" in found
    rows = [line for line in found.splitlines() if line.startswith("| `stacked` | +.0500")]
    assert len(rows) == 1
    assert "+.1000 [" in rows[0]
    assert "NDCG@10 less that of depth 4" not in page(ladder(0, LEVEL))
