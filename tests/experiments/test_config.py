"""What experiments.yaml may say, and where a mistake in it is shown."""

from pathlib import Path

import pytest

from fathom.errors import ConfigError
from fathom.experiments.config import as_stored, from_stored, load_experiments

GOOD = """\
salt: a-long-secret
experiments:
  shallower:
    layer: depth
    arms:
      control: {share: 0.25}
      depth-4: {share: 0.25, up_to: 0.5, depth: 4, rules: {max_per_category: {Drama: 2}}}
    primary: {outcome: click, minimum_effect: 0.02}
    guards:
      slow: {measured: latency_ms, above: 50, margin: 0.1}
    canary: {arm: depth-4, max_latency_ms: 100}
  next-bundle:
    layer: depth
    arms:
      control: {share: 0.1}
    shadows:
      next: {share: 0.5, bundle: shop-next}
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "experiments.yaml"
    path.write_text(text)
    return path


def test_a_file_is_read_with_its_defaults_and_its_layers(tmp_path: Path) -> None:
    file = load_experiments(written(tmp_path, GOOD))
    shallower = file.experiments["shallower"]
    assert shallower.arms["depth-4"].depth == 4
    assert (shallower.unit, shallower.alpha, shallower.window_days) == ("user", 0.05, None)
    assert shallower.guards["slow"].lower_is_better
    assert shallower.guards["slow"].form == "per_request"
    assert {layer: list(found) for layer, found in file.layers().items()} == {"depth": ["shallower", "next-bundle"]}
    assert from_stored(as_stored(shallower)) == shallower


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "share: 0.5, bundle",
            "shar: 0.5, bundle",
            ":17: unknown key experiments.next-bundle.shadows.next.shar; did you",
        ),
        ("{share: 0.1}", "{}", ":15: experiments.next-bundle.arms.control.share is missing; add it"),
        ("{share: 0.1}", "{share: 0.3}", ":12: next-bundle: the arms of layer depth have shares of 1.05 in all"),
        ("share: 0.25, up_to: 0.5", "share: 0.6, up_to: 0.5", ":7: experiments.shallower.arms.depth-4: its share must"),
        (
            "depth: 4,",
            "depth: 4, max_depth: 8,",
            ":7: experiments.shallower.arms.depth-4: it may have depth or max_depth",
        ),
        (
            "{outcome: click, minimum_effect: 0.02}",
            "{minimum_effect: 0.02}",
            ":8: experiments.shallower.primary: it needs",
        ),
        ("arm: depth-4", "arm: depth-5", ":3: experiments.shallower: canary.arm depth-5 is no arm"),
        ("max_latency_ms: 100", "max_error_rate: null", ":11: experiments.shallower.canary: it watches nothing"),
        ("next-bundle:\n", "next-bundle:\n    unit: session\n", ":12: layer depth: its experiments must have one unit"),
        ("salt: a-long-secret", "salt: short", ":1: salt is 'short'; it is too short"),
        ("depth-4: {share", "Depth4: {share", ":7: experiments.shallower.arms.Depth4 is 'Depth4'; a name has"),
        ("      control: {share: 0.25}\n", "", ":3: experiments.shallower: it needs an arm called control"),
        (
            "      control: {share: 0.25}",
            "      control: {share: 0.25}\n      control: {share: 0.2}",
            ":7: control is given",
        ),
        ("minimum_effect: 0.02", "minimum_effect: .nan", ":8: experiments.shallower.primary.minimum_effect is nan"),
    ],
)
def test_a_mistake_is_one_line_that_names_its_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    path = written(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_experiments(path)
    assert f"{path}{message}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_experiment_is_told_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^arms\.control\.share: Input should be less"):
        from_stored({"arms": {"control": {"share": 2}}})


def test_the_example_in_the_documents_can_be_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "experiments.md").read_text(encoding="utf-8")
    example = page.partition("```yaml\n")[2].partition("```")[0]
    assert list(load_experiments(written(tmp_path, example)).experiments) == ["shallower", "next-bundle"]
