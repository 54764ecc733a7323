"""Fills a store of histories from a dataset."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fathom.errors import ConfigError, DataError
from fathom.serving.history import Event, HistoryStore, Retention, open_history
from fathom.training.dataset import Dataset

USERS_AT_ONCE = 256


@dataclass(frozen=True)
class Imported:
    """Users of the dataset, and events that were not in the store before."""

    users: int
    added: int


def import_dataset(path: Path, setting: str, retention: Retention) -> Imported:
    """Append each user's newest events; raises ArtefactError, DataError, ConfigError or UnavailableError."""
    if setting in ("off", "memory"):
        raise ConfigError(f"history {setting!r} keeps nothing; import to sqlite:PATH or redis://HOST:PORT/DB")
    dataset = Dataset.load(path)
    if dataset.sequences.timestamps is None:
        raise DataError(f"{path}: its interactions have no timestamps, which order a history")
    return asyncio.run(_import(dataset, setting, retention))


async def _import(dataset: Dataset, setting: str, retention: Retention) -> Imported:
    store = open_history(setting, retention)
    assert store is not None
    try:
        added = await _append_all(store, dataset, retention.max_events)
    finally:
        await store.close()
    return Imported(dataset.n_users, added)


async def _append_all(store: HistoryStore, dataset: Dataset, most: int) -> int:
    added = 0
    for first in range(0, dataset.n_users, USERS_AT_ONCE):
        users = range(first, min(first + USERS_AT_ONCE, dataset.n_users))
        appends = [store.append(dataset.user_ids[user], list(_events(dataset, user))[-most:]) for user in users]
        added += sum(await asyncio.gather(*appends))
    return added


def _events(dataset: Dataset, user: int) -> Iterator[Event]:
    """A user's events, named after what they are, so that the same one has the same name next time."""
    seen: Counter[tuple[str, int]] = Counter()
    timestamps = dataset.sequences.times(user)
    assert timestamps is not None
    for item, timestamp in zip(dataset.sequences[user].tolist(), timestamps.tolist(), strict=True):
        what = dataset.item_ids[item], timestamp
        seen[what] += 1
        name = hashlib.blake2b(f"{timestamp}:{seen[what]}:{what[0]}".encode(), digest_size=16).hexdigest()
        yield Event(name, what[0], timestamp)
