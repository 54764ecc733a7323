"""A build says how long all of it still takes, and not only its current stage."""

import pytest

from fathom import show
from fathom.building.remaining import EPOCHS, Remaining
from fathom.training.presets import TrainConfig, preset
from fathom.training.train import TrainProgress

CONFIG = preset("ml-100k")
HEALS = ("heal prefix", "heal nested", "heal permuted-prefix")
NAMES = ("train", "rank", "plan", *HEALS, "compare", "evaluate", "export", "certify")


def times(config: TrainConfig, epoch_s: float) -> dict[str, float]:
    """What every stage takes where an epoch of all 16 layers takes so many seconds, and one of 4 the same per layer."""
    grown = config.train.grow_epochs * (4 + 4) / (16 + 4)
    return {
        "train": (grown + config.train.epochs) * epoch_s,
        **dict.fromkeys(HEALS, config.train.heal_epochs * epoch_s),
        **{name: epochs * epoch_s for name, epochs in EPOCHS.items()},
    }


def progress(stage: str, epoch: int, epochs: int, seconds_left: float | None) -> TrainProgress:
    return TrainProgress(stage, epoch, epochs, 50, 100, 5.0, {}, seconds_left)


def test_from_the_first_batches_on_the_whole_build_is_estimated() -> None:
    took = times(CONFIG, 30)
    remaining = Remaining(CONFIG, NAMES)
    assert remaining.in_training(progress("grow", 1, 12, None)) is None
    done = 0.5 * 30 * (4 + 4) / (16 + 4)
    left = remaining.in_training(progress("grow", 1, 12, took["train"] - done))
    assert left == pytest.approx(sum(took.values()) - done)


def test_the_estimate_goes_down_through_all_stages_and_never_jumps() -> None:
    took = times(CONFIG, 30)
    remaining = Remaining(CONFIG, NAMES)
    half = 6.5 * 30
    assert remaining.in_training(progress("train", 6, 12, half)) == pytest.approx(
        sum(took.values()) - took["train"] + half
    )
    for place, name in enumerate(NAMES[1:], 1):
        remaining.names = NAMES[place:]
        whole = sum(took[each] for each in remaining.names)
        assert remaining.in_stage(0.0) == pytest.approx(whole)
        assert remaining.in_stage(took[name]) == pytest.approx(whole - took[name])
        assert remaining.in_stage(2 * took[name] + 1) == pytest.approx(whole - took[name])


def test_what_stages_took_last_time_counts_before_anything_is_measured() -> None:
    remaining = Remaining(CONFIG, ("evaluate", "export"), {"evaluate": 20.0, "export": 90.0})
    assert remaining.in_stage(5.0) == 105.0
    assert Remaining(CONFIG, ("evaluate", "export"), {"evaluate": 20.0}).in_stage(5.0) is None


def test_the_text_says_what_the_time_is_an_estimate_of(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(show, "PLAIN_EVERY_S", 0.0)
    with show.Activity("train") as activity:
        activity.training(progress("train", 12, 12, 61.0))
    assert "about 1:01 min left of this training" in capsys.readouterr().err
    with show.Activity("train", Remaining(CONFIG, ("train", "export"), {"export": 60.0})) as activity:
        activity.training(progress("train", 12, 12, 61.0))
        activity.update("reading")
    assert "about 2:01 min left of the whole build" in capsys.readouterr().err
