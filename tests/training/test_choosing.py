"""Settings that follow from the statistics of the data."""

from dataclasses import replace

import numpy as np
import pytest

from fathom.training.choosing import DataStatistics, choose, settings_for, statistics
from fathom.training.dataset import Dataset, Sequences
from fathom.training.presets import PRESETS

#: As `statistics` finds them in the data that the presets were tuned for.
ML_100K = DataStatistics(943, 1_682, 100_000, 63.0, 242.4, 0.0, True, 0.51, 90)
ML_1M = DataStatistics(6_040, 3_416, 999_611, 94.0, 398.0, 0.0, False, 0.0, 0)
BEAUTY = DataStatistics(22_363, 12_101, 198_502, 4.0, 12.0, 0.0, False, 0.0, 0)
RETAIL = DataStatistics(5_544, 4_206, 480_228, 46.5, 200.0, 0.28, True, 0.946, 1_676)


def dataset(histories: list[list[int]], times: list[list[int]] | None = None, **meta: object) -> Dataset:
    items = np.concatenate([np.array(history, dtype=np.int32) for history in histories])
    offsets = np.concatenate([[0], np.cumsum([len(history) for history in histories])]).astype(np.int64)
    seconds = None if times is None else np.concatenate([np.array(each, dtype=np.int64) for each in times])
    names = tuple(map(str, range(int(items.max()) + 1)))
    users = tuple(map(str, range(len(histories))))
    return Dataset(Sequences(items, offsets, seconds), names, names, tuple(() for _ in names), users, dict(meta), "")


@pytest.mark.parametrize(("found", "name"), [(ML_100K, "ml-100k"), (BEAUTY, "beauty")])
def test_data_that_a_preset_was_tuned_for_gets_what_that_says(found: DataStatistics, name: str) -> None:
    assert choose(found).config == PRESETS[name]


def test_baskets_get_what_retail_got_and_are_judged_by_what_comes_later() -> None:
    tuned = PRESETS["retail"]
    later = tuned.model_copy(update={"train": tuned.train.model_copy(update={"split": "temporal"})})
    assert choose(RETAIL).config == later
    few = choose(replace(RETAIL, temporal_users=300))
    assert few.config.train.split == "leave-one-out"
    assert "300 users" in few.reasons[2]


def test_long_dense_histories_get_long_windows_more_epochs_and_sharper_scores() -> None:
    chosen, tuned = choose(ML_1M).config, PRESETS["ml-1m"]
    assert chosen.model == tuned.model
    assert (chosen.train.window, chosen.train.batch_tokens) == (200, 6_400)
    assert chosen.train.epochs == tuned.train.epochs


def test_tens_of_millions_of_events_get_fewer_epochs_larger_batches_and_sampled_negatives() -> None:
    chosen = choose(DataStatistics(1_640_000, 368_000, 15_500_000, 5.0, 14.0, 0.01, True, 0.3, 200_000))
    train = chosen.config.train
    assert (train.grow_epochs, train.epochs, train.heal_epochs) == (2, 2, 1)
    assert train.batch_tokens == 4_096
    assert train.full_softmax_items <= 368_000
    assert "1,024 sampled negatives of 368,000 items" in chosen.reasons[1]
    assert "fewer than usual" in chosen.reasons[1]


def test_there_are_three_lines_of_reasons_and_they_name_what_was_found() -> None:
    model, training, judging = choose(RETAIL).reasons
    assert all("\n" not in line for line in (model, training, judging))
    assert "windows of 100" in model
    assert "480,228 in all" in model
    assert "the next 20 items against all 4,206 items" in training
    assert "28% of the next events repeat" in judging
    assert "include_seen" in judging
    assert choose(RETAIL).as_dict()["statistics"]["events"] == 480_228


@pytest.mark.parametrize("events", [3, 50, 10**9])
def test_any_amount_of_data_gets_settings_that_work(events: int) -> None:
    found = DataStatistics(1, 3, events, 3.0, 3.0, 0.0, True, 1.0, 1)
    config = choose(found).config
    assert config.train.batch_tokens >= config.train.window
    assert config.train.epochs >= 2


def test_statistics_are_of_what_is_trained_on() -> None:
    histories = [[0, 1, 2, 3, 4], [0, 1, 0, 3, 4], [1, 2]]
    times = [[1, 1, 5, 6, 6], [1, 2, 3, 4, 4], [7, 7]]
    found = statistics(dataset(histories, times))
    assert (found.users, found.items, found.events) == (3, 5, 12)
    assert (found.median_length, found.p90_length) == (3.0, 3.0)
    assert found.repeats == pytest.approx(1 / 3)
    assert found.tied == pytest.approx(2 / 5)
    assert statistics(dataset(histories)).has_times is False


def test_repeats_are_those_before_they_were_dropped_where_the_dataset_says_so() -> None:
    counted = {"next_events": 10, "of_known_items": 4}
    assert statistics(dataset([[0, 1, 2, 3]], repeats=counted)).repeats == pytest.approx(0.4)


def test_a_preset_that_was_tuned_for_the_source_goes_before_the_statistics() -> None:
    known = settings_for(dataset([[0, 1, 2]], source={"kind": "online-retail-ii"}))
    assert known.config == PRESETS["retail"]
    assert known.statistics is None
    other = settings_for(dataset([[0, 1, 2]], source={"kind": "csv"}))
    assert other == choose(statistics(dataset([[0, 1, 2]])))
