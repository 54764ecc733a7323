"""Fills a store of histories from a dataset."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fathom.errors import ConfigError, DataError, MissingExtraError
from fathom.serving.history.contract import Appended, HistoryStore, Retention, StoredEvent
from fathom.serving.history.open import open_history

if TYPE_CHECKING:
    from fathom.training.dataset import Dataset

USERS_AT_ONCE = 256


@dataclass(frozen=True)
class Imported:
    """Users of the dataset, and what became of its events (as in ``Appended``)."""

    users: int
    added: int
    known: int
    too_old: int
    before_deletion: int


def import_dataset(path: Path, setting: str, retention: Retention) -> Imported:
    """Append each user's newest events.

    Raises ArtefactError, DataError, ConfigError, UnavailableError or OverloadError; MissingExtraError where datasets
    cannot be read.
    """
    if setting in ("off", "memory"):
        raise ConfigError(f"history {setting!r} stores nothing; import to sqlite:PATH or redis://HOST:PORT/DB")
    try:
        from fathom.training.dataset import Dataset
    except ModuleNotFoundError as error:
        raise MissingExtraError(str(error.name), "train") from None
    dataset = Dataset.load(path)
    if dataset.sequences.timestamps is None:
        raise DataError(f"{path}: its interactions have no timestamps, which order a history")
    ahead = int((dataset.sequences.timestamps > retention.latest).sum())
    if ahead:
        raise DataError(
            f"{path}: {ahead} interactions are dated more than {retention.max_ahead_s} s ahead of this machine's clock,"
            f" the latest {dataset.sequences.timestamps.max()} s after 1970; correct their times and prepare it again"
        )
    return asyncio.run(_import(dataset, setting, retention))


async def _import(dataset: "Dataset", setting: str, retention: Retention) -> Imported:
    store = open_history(setting, retention)
    assert store is not None
    try:
        done = await _append_all(store, dataset, retention.max_events)
    finally:
        await store.close()
    return Imported(dataset.n_users, *done)


async def _append_all(store: HistoryStore, dataset: "Dataset", most: int) -> Appended:
    done = Appended()
    for first in range(0, dataset.n_users, USERS_AT_ONCE):
        users = range(first, min(first + USERS_AT_ONCE, dataset.n_users))
        events = [list(_events(dataset, user)) for user in users]
        appends = [store.append(dataset.user_ids[user], each[-most:]) for user, each in zip(users, events, strict=True)]
        for each in await asyncio.gather(*appends):
            done += each
        done += Appended(too_old=sum(max(0, len(each) - most) for each in events))
    return done


def _events(dataset: "Dataset", user: int) -> Iterator[StoredEvent]:
    """A user's events, named after what they are, so that the same one has the same name next time."""
    seen: Counter[tuple[str, int]] = Counter()
    timestamps = dataset.sequences.times(user)
    assert timestamps is not None
    for item, timestamp in zip(dataset.sequences[user].tolist(), timestamps.tolist(), strict=True):
        what = dataset.item_ids[item], timestamp
        seen[what] += 1
        name = hashlib.blake2b(f"{timestamp}:{seen[what]}:{what[0]}".encode(), digest_size=16).hexdigest()
        yield StoredEvent(name, what[0], timestamp)
