"""The sentence at the end of a build tells a newcomer whether the bundle is worth serving."""

from pathlib import Path
from typing import Any

import pytest

from fathom.building.verdict import FEWEST_USERS, depth_verdict, verdict

WORSE, EQUAL, BETTER = (-0.02, -0.03, -0.01), (0.001, -0.01, 0.012), (0.0123, 0.008, 0.016)


def sentence(differences: dict[str, tuple[float, float, float]], users: int = 1000) -> str:
    """The verdict where each system differs from depth 16 by (value, low, high); depths 4 and 8 are equal to it."""
    systems: dict[str, Any] = {}
    for name, (value, low, high) in ({"depth 4": EQUAL, "depth 8": EQUAL} | differences).items():
        systems[name] = {"difference": {"ndcg@10": {"value": value, "low": low, "high": high}}}
    found = verdict(
        {"cases": users, "reference": "depth 16", "systems": systems}, "prefix", (4, 8, 16), Path("build/bundle")
    )
    assert found.startswith("build/bundle ships the prefix plan at depths 4, 8 and 16")
    assert "\n" not in found
    assert len(found) < 600
    return found


def test_a_network_that_beats_every_baseline_is_to_be_served() -> None:
    found = sentence({"popularity": WORSE, "EASE": WORSE})
    assert "which beats popularity and EASE, in NDCG@10 of depth 16 on 1,000 test users" in found
    assert "serve it with `fathom serve build/bundle`" in found


def test_a_bundle_without_the_depth_that_was_judged_is_said_to_be_cut_from_that_network() -> None:
    value, low, high = WORSE
    systems = {"EASE": {"difference": {"ndcg@10": {"value": value, "low": low, "high": high}}}}
    found = verdict({"cases": 1000, "reference": "depth 16", "systems": systems}, "prefix", (4, 8), Path("b"))
    assert "at depths 4 and 8, cut from a network that beats EASE, in NDCG@10 of depth 16 on 1,000 test users" in found


def test_a_baseline_that_beats_the_network_is_named_with_its_lead_and_interval() -> None:
    found = sentence({"popularity": WORSE, "EASE": EQUAL, "transitions": BETTER})
    assert "which beats popularity, is not measurably better or worse than EASE and is beaten by" in found
    assert "transitions by .0123 [.0080, .0160]" in found
    assert "use that simpler method instead" in found
    assert "fathom serve" not in found


def test_a_baseline_that_is_as_good_is_said_to_be() -> None:
    assert "is not measurably better or worse than EASE" in sentence({"EASE": EQUAL})


@pytest.mark.parametrize("users", [1, FEWEST_USERS - 1])
def test_with_too_few_users_no_figure_is_trusted(users: int) -> None:
    found = sentence({"popularity": WORSE}, users=users)
    assert f"{users} test user" in found
    assert "too few" in found
    assert "beats" not in found
    assert "too few" not in sentence({"popularity": WORSE}, users=FEWEST_USERS)


def test_where_every_shallower_depth_is_worse_depth_pays() -> None:
    found = sentence({"EASE": WORSE, "depth 4": WORSE, "depth 8": WORSE})
    assert found.endswith("Depth pays: depth 16 is ahead of depth 4 by .0200 [.0100, .0300].")


def test_where_a_shallower_depth_is_as_good_the_smaller_bundle_is_offered() -> None:
    found = sentence({"EASE": WORSE, "depth 4": WORSE, "depth 8": EQUAL})
    assert "Depth does not pay here: depth 8 less depth 16 is .0010 [-.0100, .0120]; `fathom" in found
    assert "`fathom bundle slice build/bundle --depths 4,8 --out SMALLER`" in found
    assert "Depth costs here: depth 4 less depth 16 is .0123" in sentence({"EASE": WORSE, "depth 4": BETTER})


@pytest.mark.parametrize(
    ("found", "word", "less"),
    [(EQUAL, "does not pay", ".0010 [-.0100, .0120]"), (BETTER, "costs", ".0123 [.0080, .0160]")],
)
def test_where_counting_alone_is_as_good_depth_0_is_named(
    found: tuple[float, float, float], word: str, less: str
) -> None:
    said = sentence({"EASE": WORSE, "depth 0": found, "depth 4": WORSE, "depth 8": WORSE})
    assert said.endswith(
        f"Depth {word} here: depth 0, which counts and runs no network, less depth 16 is {less}; requests with depth 0"
        " get it, and `fathom bundle slice build/bundle --depths 4 --out SMALLER` cuts the shallowest network for the"
        " others."
    )


def test_where_counting_alone_is_worse_networks_are_compared_with_each_other() -> None:
    said = sentence({"EASE": WORSE, "depth 0": WORSE, "depth 4": WORSE, "depth 8": WORSE})
    assert said.endswith("Depth pays: depth 16 is ahead of depth 4 by .0200 [.0100, .0300].")


def test_a_bundle_of_one_depth_is_compared_with_counting_alone() -> None:
    def judged(value: float, low: float, high: float) -> str:
        systems = {"depth 0": {"difference": {"ndcg@10": {"value": value, "low": low, "high": high}}}}
        return depth_verdict({"cases": 1000, "reference": "depth 4", "systems": systems}, (4,), Path("b"))

    assert judged(*EQUAL) == (
        "Depth does not pay here: depth 0, which counts and runs no network, less depth 4 is .0010 [-.0100, .0120];"
        " requests with depth 0 get it."
    )
    assert judged(*WORSE) == ""


def test_depths_that_were_not_judged_together_have_no_verdict() -> None:
    systems = {"depth 4": {"difference": {"ndcg@10": {"value": -0.02, "low": -0.03, "high": -0.01}}}}
    evaluation = {"cases": 1000, "reference": "depth 16", "systems": systems}
    assert depth_verdict(evaluation, (4, 8), Path("b")) == ""
    assert depth_verdict(evaluation, (16,), Path("b")) == ""
