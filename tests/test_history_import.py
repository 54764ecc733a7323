"""`fathom history import`: a dataset becomes the histories of a store."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fathom.errors import ConfigError, DataError
from fathom.serving.history.contract import Retention, StoredEvent
from fathom.serving.history.open import open_history
from fathom.tools.history_import import Imported, import_dataset
from fathom.training.dataset import Dataset


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fathom", "history", "import", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def read(setting: str, users: tuple[str, ...]) -> list[list[StoredEvent]]:
    async def all_of_them() -> list[list[StoredEvent]]:
        store = open_history(setting, Retention())
        assert store is not None
        found = [await store.read(user) for user in users]
        await store.close()
        return found

    return asyncio.run(all_of_them())


def test_every_user_gets_the_events_of_the_dataset_once(tiny_build: Path, tmp_path: Path) -> None:
    dataset = Dataset.load(tiny_build / "dataset")
    setting = f"sqlite:{tmp_path / 'history.db'}"
    done = run(tiny_build / "dataset", "--to", setting, "--json")
    assert done.returncode == 0, done.stderr
    events = len(dataset.sequences.items)
    nothing = {"known": 0, "too_old": 0, "before_deletion": 0}
    assert json.loads(done.stdout) == {"users": dataset.n_users, "added": events, **nothing}
    again = run(tiny_build / "dataset", "--to", setting).stdout
    assert again.startswith(f"0 new events of {dataset.n_users} users; left out: {events} known already, 0 too old")
    for user, found in enumerate(read(setting, dataset.user_ids)):
        times = dataset.sequences.times(user)
        assert times is not None
        assert [event.timestamp for event in found] == times.tolist()
        assert [event.item_id for event in found] == [dataset.item_ids[item] for item in dataset.sequences[user]]


def test_only_the_newest_events_are_imported(tiny_build: Path, tmp_path: Path) -> None:
    dataset = Dataset.load(tiny_build / "dataset")
    setting = f"sqlite:{tmp_path / 'history.db'}"
    done = import_dataset(tiny_build / "dataset", setting, Retention(max_events=5))
    kept = 5 * dataset.n_users
    assert done == Imported(dataset.n_users, kept, 0, len(dataset.sequences.items) - kept, 0)
    for user, found in enumerate(read(setting, dataset.user_ids)):
        assert [event.item_id for event in found] == [dataset.item_ids[item] for item in dataset.sequences[user][-5:]]


def test_a_store_that_keeps_nothing_is_refused(tiny_build: Path) -> None:
    with pytest.raises(ConfigError, match="stores nothing"):
        import_dataset(tiny_build / "dataset", "memory", Retention())


def test_what_a_server_would_not_keep_is_not_imported_and_counted(tiny_build: Path, tmp_path: Path) -> None:
    dataset = Dataset.load(tiny_build / "dataset")
    times, events = dataset.sequences.timestamps, len(dataset.sequences.items)
    assert times is not None
    setting, deleted = f"sqlite:{tmp_path / 'history.db'}", dataset.user_ids[0]

    async def delete() -> None:
        store = open_history(setting, retention)
        assert store is not None
        await store.delete(deleted)
        await store.close()

    # As if the newest event had happened 10 days ago.
    retention = Retention(10_000, max_age_days=20, clock=lambda: int(times.max()) + 10 * 86_400)
    asyncio.run(delete())
    done = import_dataset(tiny_build / "dataset", setting, retention)
    of_deleted = len(dataset.sequences[0])
    old = int((times < retention.oldest).sum()) - int((dataset.sequences.times(0) < retention.oldest).sum())
    assert (done.before_deletion, done.too_old, done.known) == (of_deleted, old, 0)
    assert done.added == events - of_deleted - old > 0


def test_a_dataset_of_the_future_is_refused_whole(tiny_build: Path, tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    with pytest.raises(
        DataError, match="interactions are dated more than 86400 s ahead of this machine's clock"
    ) as caught:
        import_dataset(tiny_build / "dataset", f"sqlite:{path}", Retention(clock=lambda: 0))
    assert len(str(caught.value)) < 300
    assert not path.exists()


def test_without_the_training_libraries_the_extra_is_named(tiny_build: Path, tmp_path: Path) -> None:
    hide = "import sys; sys.modules['polars'] = None; from fathom.cli import main; main()"
    command = [
        sys.executable,
        "-c",
        hide,
        "history",
        "import",
        str(tiny_build / "dataset"),
        "--to",
        f"sqlite:{tmp_path}/h",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert "polars is not installed; run: pip install" in done.stderr
    assert "[train]'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
