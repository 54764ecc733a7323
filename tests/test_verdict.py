"""The sentence at the end of a build tells a newcomer whether the bundle is worth serving."""

from pathlib import Path
from typing import Any

import pytest

from fathom.building.verdict import FEWEST_USERS, verdict


def sentence(differences: dict[str, tuple[float, float, float]], users: int = 1000) -> str:
    """The verdict where each system differs from depth 16 by (value, low, high)."""
    systems: dict[str, Any] = {"depth 4": {"difference": {"ndcg@10": {"value": 0.5, "low": 0.4, "high": 0.6}}}}
    for name, (value, low, high) in differences.items():
        systems[name] = {"difference": {"ndcg@10": {"value": value, "low": low, "high": high}}}
    found = verdict(
        {"cases": users, "reference": "depth 16", "systems": systems}, "prefix", (4, 8, 16), Path("build/bundle")
    )
    assert found.startswith("build/bundle ships the prefix plan at depths 4, 8 and 16")
    assert found.count(".\n") == 0
    assert len(found) < 400
    return found


WORSE, EQUAL, BETTER = (-0.02, -0.03, -0.01), (0.001, -0.01, 0.012), (0.0123, 0.008, 0.016)


def test_a_network_that_beats_every_baseline_is_to_be_served() -> None:
    found = sentence({"popularity": WORSE, "EASE": WORSE})
    assert "which beats popularity and EASE, in NDCG@10 of depth 16 on 1,000 test users" in found
    assert "serve it with `fathom serve build/bundle`" in found


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
