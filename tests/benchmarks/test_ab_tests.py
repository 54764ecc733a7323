"""The simulated experiments: the product's own statistics, few false alarms, and a section of all that is stored."""

import numpy as np
import pytest

from fathom.benchmarks.experiments import ab_tests
from fathom.benchmarks.experiments.ab_tests import click_probability, looks, scale_for, simulate
from fathom.experiments.comparison import Sample, compare


def test_the_vectorised_looks_are_those_of_the_product() -> None:
    drawn = simulate(np.random.default_rng(0), 2_000, 0.05)
    found = looks(drawn)
    sides = (np.s_[: drawn.treated], np.s_[drawn.treated :])
    for day in (9, 29):
        clicks, visits = (each[:, : day + 1].sum(axis=1).astype(float) for each in (drawn.clicks, drawn.visits))
        came = visits > 0
        samples = {
            "clicks": [Sample(clicks[side][came[side]]) for side in sides],
            "adjusted": [Sample(clicks[side][came[side]], None, drawn.before[side][came[side]]) for side in sides],
            "ratio": [Sample(clicks[side][came[side]], visits[side][came[side]]) for side in sides],
        }
        for name, (one, two) in samples.items():
            real = compare(one, two, expected=2_000, alpha=0.05)
            error = np.sqrt(real.treatment.squared_error + real.control.squared_error)
            assert found[name][0][day] == pytest.approx(real.difference / error, rel=2e-3)
            assert found[name][1][day] == len(one) + len(two)


def test_the_better_list_gets_as_many_more_clicks_as_asked_for() -> None:
    taste = np.random.default_rng(1).beta(*ab_tests.TASTE, 200_000)
    gained = click_probability(taste, scale_for(0.05)).mean() / click_probability(taste, 1.0).mean() - 1
    assert gained == pytest.approx(0.05, abs=5e-4)


def test_a_small_run_shows_every_part() -> None:
    result = {
        **dict(zip(("no_difference", "difference"), ab_tests.claim_rows(10, 1_000, 0), strict=True)),
        "mismatch": ab_tests.mismatch_rows(20, 20_000, 0),
        "canary": ab_tests.canary_rows(1, 0),
    }
    assert all(row["different"] <= 0.2 for row in result["no_difference"])
    assert result["mismatch"][0]["alarms"] == 0
    assert result["mismatch"][-1]["alarms"] == 1
    ends = {row["wrong"]: row["rolled_back"] for row in result["canary"]}
    assert (ends["nothing"], ends["errors 20 %"], ends["agreement .5"]) == (0, 1, 1)
    config = {"experiments": 10, "users": 1_000, "days": 30, "alpha": 0.05, "uplift": 0.05, "alarm": 0.001}
    page = ab_tests._section(
        {"config": config | {"canary_replications": 1, "canary_requests": 5_000}, "result": result}
    )
    assert page.count("| clicks per request |") == 2
    assert "| errors 20 % | 100% |" in page
