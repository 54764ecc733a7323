"""Settings that follow from the data: statistics of a dataset -> a config, and why.

The rules give the presets that were tuned (`presets.py`) or nearly those, and are read off them: which statistic
explains best where they differ. docs/log.md has the figures.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fathom.errors import DataError
from fathom.training.dataset import Dataset, Sequences
from fathom.training.model import ModelSettings
from fathom.training.presets import TrainConfig, TrainSettings, preset
from fathom.training.splits import leave_one_out, temporal

#: Sources whose data a preset was tuned for.
TUNED = {"ml-100k": "ml-100k", "ml-1m": "ml-1m", "online-retail-ii": "retail"}

WIDTH = 64
#: Windows, and the fewest events from which their distances can be learned.
WINDOWS = ((50, 0), (100, 250_000), (200, 750_000))
#: A softmax over more items costs more than the network does.
FULL_SOFTMAX_ITEMS, NEGATIVES = 10_000, 1_024
#: Events of a user that share one time, as many or more, are lines of a basket; what is predicted reaches beyond it.
BASKET, AHEAD_OF_BASKET = 5.0, 20
#: Fewer test users make intervals too wide to tell depths apart.
TEMPORAL_USERS = 1_000
#: What all epochs of a stage may read, and the fewest steps of one.
STAGE_EVENTS, EPOCH_STEPS = 30_000_000, 2_000
#: Events an item below which the joint stage soon gains nothing, and from which more epochs and sharper scores help.
SPARSE, DENSE = 25, 200
MANY_REPEATS = 0.05


@dataclass(frozen=True)
class DataStatistics:
    """What the settings follow from.

    median_length, p90_length: events of a user's training part, those of users who have any; repeats: share of users'
    next events, within the training part, whose item they had before; tied: share of events that have the time of the
    same user's event before; temporal_users: test cases of the temporal split, 0 without times.
    """

    users: int
    items: int
    events: int
    median_length: float
    p90_length: float
    repeats: float
    has_times: bool
    tied: float
    temporal_users: int

    @property
    def events_per_item(self) -> float:
        """Events of an item on average."""
        return self.events / self.items

    @property
    def basket(self) -> float:
        """Events of a user at one time on average; 1 without times."""
        return 1 / (1 - min(self.tied, 1 - 1e-6))


@dataclass(frozen=True)
class ChosenSettings:
    """A config and why: a line on the model, one on training, one on what is held out and recommended.

    ``statistics``: what it follows from; None: from a preset that was tuned for this data, as the only line says.
    """

    config: TrainConfig
    reasons: tuple[str, ...]
    statistics: DataStatistics | None = None

    def as_dict(self) -> dict[str, Any]:
        """For records: the statistics and the reasons."""
        return {"reasons": list(self.reasons), "statistics": self.statistics and asdict(self.statistics)}


def settings_for(dataset: Dataset) -> ChosenSettings:
    """The preset that was tuned for a dataset, by the source that its meta.json names, else what its statistics say."""
    name = TUNED.get(dataset.meta.get("source", {}).get("kind", ""))
    if name is None:
        return choose(statistics(dataset))
    return ChosenSettings(preset(name), (f"settings: the preset {name}, tuned for this data",))


def statistics(dataset: Dataset) -> DataStatistics:
    """The statistics of a dataset; what is held out counts for nothing but the size of the temporal split."""
    train = leave_one_out(dataset).train
    lengths = train.lengths[train.lengths > 0]
    counted = dataset.meta.get("repeats")  # before repeats were dropped
    repeats = counted["of_known_items"] / max(1, counted["next_events"]) if counted else _repeats(train)
    return DataStatistics(
        users=dataset.n_users,
        items=dataset.n_items,
        events=len(dataset.sequences.items),
        median_length=float(np.median(lengths)),
        p90_length=float(np.quantile(lengths, 0.9)),
        repeats=float(repeats),
        has_times=train.timestamps is not None,
        tied=_tied(train),
        temporal_users=_temporal_users(dataset),
    )


def choose(found: DataStatistics) -> ChosenSettings:
    """The settings for data with these statistics."""
    model, about_model = _model(found)
    values, about_training = _training(found, model.span)
    split, about_split = _split(found)
    config = TrainConfig(model=model, train=TrainSettings.model_validate({**values, "split": split}))
    return ChosenSettings(config, (about_model, about_training, f"{about_split}; {_about_repeats(found)}"), found)


def _model(found: DataStatistics) -> tuple[ModelSettings, str]:
    fitting = [size for size, events in WINDOWS if found.p90_length >= size and found.events >= events]
    window = max(fitting, default=WINDOWS[0][0])
    history = 200 if found.p90_length > 50 else 50
    dropout = 0.4 if found.events_per_item < SPARSE else 0.3 if found.events_per_item < 100 else 0.2
    temperature = 0.05 if found.events_per_item >= DENSE else ModelSettings().temperature
    shape = ModelSettings(width=WIDTH, span=window, max_history=history, dropout=dropout, temperature=temperature)
    return shape, (
        f"model: windows of {window} and histories of up to {history}, as one user in ten has {found.p90_length:,.0f}"
        f" events or more and there are {found.events:,} in all; width {WIDTH}, as in every data set that was measured;"
        f" dropout {dropout:g}, with {found.events_per_item:,.0f} events an item"
    )


def _training(found: DataStatistics, window: int) -> tuple[dict[str, Any], str]:
    baskets, an_item = found.basket >= BASKET, found.events_per_item
    ahead = AHEAD_OF_BASKET if baskets else 3
    grow, together = (5, 4) if baskets else (12, 10 if an_item < SPARSE else 12 if an_item < DENSE else 22)
    most = max(2, STAGE_EVENTS // found.events)
    grow, together = min(grow, most), min(together, most)
    wanted = found.events // EPOCH_STEPS
    batch = max(32 * window, min(16_384, 1 << max(0, wanted.bit_length() - 1)))
    short = together <= 5
    values = {
        "window": window,
        "batch_tokens": batch,
        "targets_ahead": ahead,
        "grow_epochs": grow,
        "epochs": together,
        "heal_epochs": 1 if short else 3,
        "evaluate_every": 1 if short else 2,
        "full_softmax_items": FULL_SOFTMAX_ITEMS,
        "negatives": NEGATIVES,
    }
    sampled = found.items >= FULL_SOFTMAX_ITEMS
    softmax = f"{NEGATIVES:,} sampled negatives of {found.items:,} items" if sampled else f"all {found.items:,} items"
    why = f"a user has {found.basket:,.0f} events at one time" if baskets else "events do not come in baskets"
    many = f", fewer than usual for {found.events:,} events" if most < 12 else ""
    return values, (
        f"training: {grow} epochs of the shallowest exit, which the others grow from, and {together} of all{many}, with"
        f" learning rates {TrainSettings().grow_learning_rate:g} and {TrainSettings().learning_rate:g}; batches of"
        f" {batch:,} items; the next {ahead} items against {softmax}, as {why}"
    )


def _split(found: DataStatistics) -> tuple[str, str]:
    if found.basket < BASKET:
        return "leave-one-out", "held out: each user's last two items"
    if found.temporal_users < TEMPORAL_USERS:
        users = f"only {found.temporal_users:,} users could be asked after a cut in time"
        return "leave-one-out", f"held out: each user's last two items, though they come in baskets, as {users}"
    return "temporal", (
        f"held out: what is newest, as {found.tied:.0%} of the events share the time of the one before, and no server"
        " is asked for the last line of a basket"
    )


def _about_repeats(found: DataStatistics) -> str:
    share = f"{found.repeats:.0%} of the next events repeat an item of the same user"
    if found.repeats < MANY_REPEATS:
        return f"only new items are recommended: {share}"
    return f"only new items are learned and judged, though {share}: requests with include_seen get those too"


def _repeats(train: Sequences) -> float:
    """The share of users whose last training event has an item that they had before."""
    users = np.flatnonzero(train.lengths >= 2)
    again = sum(bool(np.isin(train[user][-1], train[user][:-1])) for user in users.tolist())
    return again / max(1, len(users))


def _tied(train: Sequences) -> float:
    if train.timestamps is None:
        return 0.0
    same_user = train.owners[1:] == train.owners[:-1]
    return float((train.timestamps[1:] == train.timestamps[:-1])[same_user].mean()) if same_user.any() else 0.0


def _temporal_users(dataset: Dataset) -> int:
    try:
        return len(temporal(dataset).test)
    except DataError:
        return 0
