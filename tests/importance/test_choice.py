"""Choosing methods for a budget, from models whose layers' worth is known."""

import json
from pathlib import Path

import pytest

from fathom.errors import ConfigError
from fathom.importance.choice import Graded, choose_methods, expected_seconds, forward_seconds
from fathom.importance.toy import GatedToy, toy_batches

TRUTH = [4.0, 3.0, 2.0, 1.0]
#: Two that err in opposite ways and agree with the truth together, one that is right alone, one that is wrong.
SCORES = {
    "early": [3.0, 4.0, 2.0, 1.0],
    "late": [4.0, 3.0, 1.0, 2.0],
    "right": [4.0, 3.0, 2.0, 1.0],
    "wrong": [1.0, 2.0, 3.0, 4.0],
}
SECONDS = {"early": 2.0, "late": 4.0, "right": 20.0, "wrong": 1.0}
KNOWN = [Graded(TRUTH, SCORES, SECONDS, 1.0), Graded(TRUTH, SCORES, {k: 2 * v for k, v in SECONDS.items()}, 2.0)]


def test_the_best_method_is_chosen_when_the_time_allows_it_and_nothing_is_added_that_does_not_help() -> None:
    assert choose_methods(KNOWN, SCORES, 1.0, 100) == ["right"]
    assert choose_methods(KNOWN, SCORES, 1.0, 20) == ["right"]


def test_with_less_time_cheap_methods_stand_together() -> None:
    assert choose_methods(KNOWN, SCORES, 1.0, 19) == ["early", "late"]
    assert choose_methods(KNOWN, ["wrong", "early"], 1.0, 100) == ["early"]
    assert choose_methods(KNOWN, SCORES, 1.0, 1.5) == ["wrong"]


def test_a_method_is_added_when_the_consensus_comes_closer_to_the_truth() -> None:
    one_sided = {"a": [4.0, 3.0, 1.0, 2.0], "b": [4.0, 2.0, 3.0, 1.0], "c": [3.0, 4.0, 2.0, 1.0]}
    known = [Graded(TRUTH, one_sided, dict.fromkeys(one_sided, 1.0), 1.0)]
    assert known[0].tau(["a"]) == known[0].tau(["b"]) < known[0].tau(["a", "b", "c"])
    chosen = choose_methods(known, one_sided, 1.0, 10)
    assert len(chosen) > 1
    assert known[0].tau(chosen) > known[0].tau(chosen[:1])


def test_times_are_scaled_to_this_machine_and_model() -> None:
    assert expected_seconds(KNOWN, 0.5) == {"early": 1.0, "late": 2.0, "right": 10.0, "wrong": 0.5}
    assert choose_methods(KNOWN, SCORES, 0.5, 10) == ["right"]
    assert forward_seconds(GatedToy([1.0, 0.5]), toy_batches(2, 4)) > 0


def test_a_budget_that_no_method_fits_names_the_cheapest() -> None:
    with pytest.raises(ConfigError, match=r"no .* method fits into 0.5 s; the cheapest, wrong, takes about 1 s here"):
        choose_methods(KNOWN, SCORES, 1.0, 0.5)
    with pytest.raises(ConfigError, match="none of these importance methods has been graded"):
        choose_methods(KNOWN, ["mine"], 1.0, 10)


def test_a_file_of_grades_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no grades of importance methods are stored"):
        Graded.load(tmp_path / "graded.json")
    model = {"truth": TRUTH, "scores": SCORES, "seconds": SECONDS, "forward_seconds": 1.0}
    (tmp_path / "graded.json").write_text(json.dumps({"models": [model]}))
    assert Graded.load(tmp_path / "graded.json") == KNOWN[:1]
