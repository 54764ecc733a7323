"""The benchmark of rules measures every kind of rule, and diversity on test users, and shows what it found."""

from argparse import Namespace
from pathlib import Path

import numpy as np

from fathom.benchmarks.systems.rules import DIVERSITIES, KINDS, diversities, measure, render
from fathom.runtime.bundle import Bundle
from fathom.training.dataset import Sequences
from fathom.training.splits import Cases


def test_a_run_has_a_row_per_kind_of_rule_and_can_be_shown() -> None:
    (run,) = measure(Namespace(items=[200], rounds=3, bundle=None, data=None))
    rows = run.result["costs"]
    assert [row["rule"] for row in rows] == 2 * ["none", *KINDS]
    assert all(0 < row["median_us"] <= row["p99_us"] for row in rows)
    shown = render({"config": run.config, "result": run.result})
    assert "| 200 | depth 0 | none |" in shown
    assert "| 200 | a search | all |" in shown


async def test_lists_are_further_apart_where_diversity_is_larger(synthetic_bundle: Path) -> None:
    histories = Sequences(np.arange(12, dtype=np.int32), np.arange(0, 13, 3))
    cases = Cases(histories, np.array([20, 21, 22, 23], np.int32), np.arange(4, dtype=np.int32))
    rows = await diversities(Bundle.open(synthetic_bundle), cases)
    assert [(row["depth"], row["diversity"]) for row in rows] == [(d, x) for d in (0, 16) for x in DIVERSITIES]
    for each in (rows[: len(DIVERSITIES)], rows[len(DIVERSITIES) :]):
        assert each[0]["distance"]["value"] < each[-1]["distance"]["value"]
        assert each[0]["ndcg_change"] is None
    config = {"bundle": "b", "users": 4, "split": "leave-one-out", "best": 10}
    assert "| 16 | 0.5 |" in render({"config": config, "result": {"diversity": rows}})
